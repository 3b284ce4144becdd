//! An amount that many take from, as the memory of a process. Does not know what it is taken for,
//! and nobody waits here.
//!
//! **Fairness**: whoever asks for more gets it only while it holds no more than is left for all
//! others. Alone it gets half, one of `n` that want all they can get the `n + 1`th part. So those
//! that come later always find something, also when those before them stand still with what they
//! hold.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// The amount. Clones share it.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Amount>);

#[derive(Debug)]
struct Amount {
    total: u64,
    free: Mutex<u64>,
}

impl Pool {
    /// A pool of so much, all of it free.
    pub fn new(total: u64) -> Pool {
        Pool(Arc::new(Amount { total, free: Mutex::new(total) }))
    }

    /// How much there is.
    pub fn total(&self) -> u64 {
        self.0.total
    }

    /// How much nobody has.
    pub fn free(&self) -> u64 {
        *self.lock()
    }

    /// A share for somebody new, with nothing in it.
    pub fn share(&self) -> Arc<Share> {
        Arc::new(Share { pool: self.clone(), held: AtomicU64::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one of those that take from a [`Pool`] holds.
#[derive(Debug)]
pub struct Share {
    pool: Pool,
    /// Changed only under the pool's lock.
    held: AtomicU64,
}

impl Share {
    /// Takes `amount` more, if this share holds no more than is left then for all others.
    pub fn take(self: &Arc<Self>, amount: u64) -> Option<Taken> {
        let mut free = self.pool.lock();
        let left = free.checked_sub(amount)?;
        if self.held() > left {
            return None;
        }
        *free = left;
        self.held.fetch_add(amount, Ordering::Relaxed);
        Some(Taken { share: Arc::clone(self), amount })
    }

    /// How much it holds.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether it holds more than is left for all others: it got that when there was more.
    pub fn is_greedy(&self) -> bool {
        self.held() > self.pool.free()
    }
}

/// A part of a [`Share`]; given back when dropped.
#[derive(Debug)]
pub struct Taken {
    share: Arc<Share>,
    amount: u64,
}

impl Taken {
    /// How much it is.
    pub fn amount(&self) -> u64 {
        self.amount
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut free = self.share.pool.lock();
        *free += self.amount;
        self.share.held.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Takes as much as there is to get, one at a time.
    fn take_all(share: &Arc<Share>) -> Vec<Taken> {
        std::iter::from_fn(|| share.take(1)).collect()
    }

    /// F-046: one gets half, and those that come later share what it leaves, whatever it does.
    #[test]
    fn one_that_stands_still_with_all_it_got_leaves_something_to_everybody_later() {
        let pool = Pool::new(64);
        let taken: Vec<_> = (0..6).map(|_| take_all(&pool.share())).collect();
        let amounts: Vec<usize> = taken.iter().map(Vec::len).collect();
        assert_eq!(amounts, [32, 16, 8, 4, 2, 1]);
        assert_eq!(pool.free(), 1);
    }

    #[test]
    fn those_that_take_in_turns_get_equal_parts() {
        let pool = Pool::new(66);
        let shares: Vec<_> = (0..10).map(|_| pool.share()).collect();
        let mut taken = Vec::new();
        for turn in 0..60 {
            taken.extend(shares[turn % 10].take(1));
        }
        let held: Vec<u64> = shares.iter().map(|share| share.held()).collect();
        assert_eq!(held, [6; 10]);
        assert!(shares[0].take(1).is_none() && !shares[0].is_greedy());
        let later = pool.share().take(6);
        assert!(later.is_some() && shares[0].is_greedy(), "it got that when there was more");
    }

    proptest! {
        /// Nothing is lost, nothing is made, and what is held is never more than there is.
        #[test]
        fn all_that_was_taken_comes_back(
            moves in prop::collection::vec((0..5_usize, 0..30_u64, any::<bool>()), 1..200),
        ) {
            let pool = Pool::new(100);
            let shares: Vec<_> = (0..5).map(|_| pool.share()).collect();
            let mut taken: Vec<Taken> = Vec::new();
            for (who, amount, gives) in moves {
                if gives && !taken.is_empty() {
                    taken.swap_remove(who % taken.len());
                } else {
                    taken.extend(shares[who].take(amount));
                }
                let out: u64 = taken.iter().map(Taken::amount).sum();
                let held: u64 = shares.iter().map(|share| share.held()).sum();
                prop_assert_eq!((out, out + pool.free()), (held, pool.total()));
            }
            taken.clear();
            prop_assert_eq!(pool.free(), pool.total());
        }
    }
}
