//! What core needs from the world, modelled on the weakest backend (DynamoDB, SQS, Auto Scaling).

use std::sync::Arc;

use telecine_domain::time::Timestamp;

pub mod credentials;
pub mod instances;
pub mod keys;
pub mod paging;
pub mod queue;
pub mod table;

/// Says what time it is. Only a `Table` needs one, to hide rows that have expired; everything else takes `now` as an
/// argument. Real time in a program, a value that a test moves in a test.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;
