//! A registered store and its secret become something that can be read, listed, written, validated and signed.

mod secret;

pub use secret::StoreSecret;
