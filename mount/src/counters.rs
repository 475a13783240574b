//! What a mount has moved: counted where the bytes pass, never estimated.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Totals since the mount began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Bytes handed to readers of the mount (the kernel's page cache asks once for what it then keeps).
    pub bytes_read: u64,
    /// Bytes taken from writers of the mount.
    pub bytes_written: u64,
    /// Requests the kernel made of the mount, of every kind.
    pub requests: u64,
    /// Bytes fetched from stores: ranges of objects, or reads of files in folder stores.
    pub store_bytes_read: u64,
    /// Bytes that went to stores: parts of uploads, or writes into hidden files of folder stores.
    pub store_bytes_written: u64,
    /// Requests made of object stores, retries included; folders have none.
    pub store_requests: u64,
}

/// The live cells behind [`Counters`].
#[derive(Debug, Default)]
pub(crate) struct CounterCells {
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    requests: AtomicU64,
    store_bytes_read: AtomicU64,
    store_bytes_written: AtomicU64,
    store_requests: AtomicU64,
}

impl CounterCells {
    pub(crate) fn snapshot(&self) -> Counters {
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Counters {
            bytes_read: load(&self.bytes_read),
            bytes_written: load(&self.bytes_written),
            requests: load(&self.requests),
            store_bytes_read: load(&self.store_bytes_read),
            store_bytes_written: load(&self.store_bytes_written),
            store_requests: load(&self.store_requests),
        }
    }

    pub(crate) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, bytes: usize) {
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn written(&self, bytes: usize) {
        self.bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn store_request(&self) {
        self.store_requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn store_read(&self, bytes: usize) {
        self.store_bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn store_written(&self, bytes: usize) {
        self.store_bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
