//! What core needs from the world, modelled on the weakest backend (DynamoDB, SQS, Auto Scaling).

pub mod credentials;
pub mod instances;
pub mod keys;
pub mod queue;
pub mod table;
