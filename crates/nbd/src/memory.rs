//! An export in memory, sparse by pages of 4 KiB, for tests of whatever speaks NBD.
//!
//! It keeps nothing and makes nothing durable: not for data anybody wants back.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use crate::server::{Allocation, BlockSizes, Export, ExportError, ExportExtent, HoleRule};

/// Granularity of allocation in bytes.
const PAGE: u64 = 4096;

type Page = Box<[u8; PAGE as usize]>;

/// An export in memory.
pub struct MemoryExport {
    size: u64,
    read_only: bool,
    block_sizes: BlockSizes,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pages: BTreeMap<u64, Page>,
    flushes: u64,
}

impl State {
    /// Calls `change` with each page of a range, the first byte and the bytes concerned in it.
    fn each_page(offset: u64, len: u64, mut change: impl FnMut(u64, usize, usize)) {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let start = at % PAGE;
            let count = (PAGE - start).min(end - at);
            change(at / PAGE, start as usize, count as usize);
            at += count;
        }
    }

    fn zero(&mut self, offset: u64, len: u64, hole: HoleRule) {
        Self::each_page(offset, len, |page, start, count| {
            if hole == HoleRule::MayPunch && count == PAGE as usize {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                bytes[start..start + count].fill(0);
            } else if hole == HoleRule::KeepAllocated {
                self.pages.insert(page, Box::new([0; PAGE as usize]));
            }
        });
    }
}

impl MemoryExport {
    /// Makes a disk of `size` bytes that takes writes and reads as zeroes.
    pub fn new(size: u64) -> Self {
        let (block_sizes, state) = (BlockSizes::default(), Mutex::default());
        MemoryExport { size, read_only: false, block_sizes, state }
    }

    /// Makes a disk with the given content that refuses writes; pages of zeroes are holes.
    pub fn read_only(content: &[u8]) -> Self {
        let mut disk = MemoryExport::new(content.len() as u64);
        for (number, page) in content.chunks(PAGE as usize).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                let mut bytes = Box::new([0; PAGE as usize]);
                bytes[..page.len()].copy_from_slice(page);
                disk.lock().pages.insert(number as u64, bytes);
            }
        }
        disk.read_only = true;
        disk
    }

    /// Sets the block sizes.
    pub fn with_block_sizes(mut self, block_sizes: BlockSizes) -> Self {
        self.block_sizes = block_sizes;
        self
    }

    /// Copies the whole content.
    pub fn content(&self) -> Vec<u8> {
        self.copy(0, self.size).to_vec()
    }

    /// Tells how often it was flushed.
    pub fn flushes(&self) -> u64 {
        self.lock().flushes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(&self, offset: u64, len: u64) -> BytesMut {
        let mut out = BytesMut::with_capacity(len as usize);
        let state = self.lock();
        State::each_page(offset, len, |page, start, count| match state.pages.get(&page) {
            Some(bytes) => out.extend_from_slice(&bytes[start..start + count]),
            None => out.resize(out.len() + count, 0),
        });
        out
    }
}

#[async_trait]
impl Export for MemoryExport {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ExportError> {
        Ok(self.copy(offset, len.into()).freeze())
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        let mut state = self.lock();
        let mut taken = 0;
        State::each_page(offset, data.len() as u64, |page, start, count| {
            let bytes = state.pages.entry(page).or_insert_with(|| Box::new([0; PAGE as usize]));
            bytes[start..start + count].copy_from_slice(&data[taken..taken + count]);
            taken += count;
        });
        Ok(())
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.lock().flushes += 1;
        Ok(())
    }

    async fn trim(&self, offset: u64, len: u32) -> Result<(), ExportError> {
        self.lock().zero(offset, len.into(), HoleRule::MayPunch);
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u32, hole: HoleRule) -> Result<(), ExportError> {
        self.lock().zero(offset, len.into(), hole);
        Ok(())
    }

    async fn status(&self, offset: u64, len: u32) -> Result<Vec<ExportExtent>, ExportError> {
        let state = self.lock();
        let mut extents = Vec::new();
        State::each_page(offset, len.into(), |page, _, count| {
            let allocation =
                if state.pages.contains_key(&page) { Allocation::Data } else { Allocation::Hole };
            extents.push(ExportExtent { len: count as u64, allocation });
        });
        Ok(extents)
    }
}
