//! Pages of whole objects that are read by parts, kept in memory: a footer, then record after
//! record. Such objects never change, so nothing here is ever wrong, only forgotten.

use bytes::Bytes;
use std::collections::{HashMap, VecDeque};

/// Bytes of a page: a whole small segment, or a footer of a large one, for one request.
pub(super) const PAGE_BYTES: u64 = 256 << 10;
/// All pages together. At the limit the oldest go.
const BYTES_MAX: usize = 32 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pages {
    pages: HashMap<(String, u64), Bytes>,
    /// In the order in which they came.
    order: VecDeque<(String, u64)>,
    bytes: usize,
}

impl Pages {
    pub(super) fn get(&self, name: &str, page: u64) -> Option<Bytes> {
        self.pages.get(&(name.to_owned(), page)).cloned()
    }

    pub(super) fn put(&mut self, name: &str, page: u64, bytes: Bytes) {
        let key = (name.to_owned(), page);
        self.bytes += bytes.len();
        if let Some(old) = self.pages.insert(key.clone(), bytes) {
            self.bytes -= old.len();
        } else {
            self.order.push_back(key);
        }
        while self.bytes > BYTES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.pages.remove(&oldest).map_or(0, |page| page.len());
        }
    }

    pub(super) fn forget(&mut self, name: &str) {
        let (pages, bytes) = (&mut self.pages, &mut self.bytes);
        self.order.retain(|key| {
            let stays = key.0 != name;
            if !stays {
                *bytes -= pages.remove(key).map_or(0, |page| page.len());
            }
            stays
        });
    }
}
