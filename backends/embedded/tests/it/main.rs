//! The embedded backend against the real world: files, kills, full disks, processes, events.

mod full_disk;
mod instances;
mod killed;
mod opening;
mod table;
mod watching;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use telecine_core::ports::Clock;
use telecine_core::ports::table::{Condition, Key, Row, Write};
use telecine_domain::time::Timestamp;

/// The real time.
fn clock() -> Clock {
    Arc::new(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        Timestamp::from_millis(u64::try_from(now).unwrap())
    })
}

/// A new row with some body.
fn new_row(partition: &str, sort: &str, body: &str) -> Vec<Write> {
    let row = Row::new(Key::new(partition, sort), 1, json!({ "body": body }));
    vec![Write::Put { row, condition: Condition::Absent }]
}
