//! What every backend must do, as tests: each suite takes a way to make an empty port and panics at the first
//! violation. Backends call them from their own tests.

mod queue;
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use telecine_domain::id::{InstanceId, PoolName};
use telecine_domain::location::Location;
use telecine_domain::store::Store;
use telecine_domain::time::Timestamp;

use crate::ports::Clock;
use crate::ports::credentials::{Credentials, Grants};
use crate::ports::instances::{Instances, InstancesError};
use crate::ports::keys::{Keys, KeysError};

pub use queue::queue_contract;
pub use table::table_contract;

/// A clock that stands still until it is moved.
#[derive(Clone, Debug)]
pub struct HandClock(Arc<AtomicU64>);

impl HandClock {
    /// Stands at `now`.
    pub fn at(now: Timestamp) -> Self {
        Self(Arc::new(AtomicU64::new(now.as_millis())))
    }

    /// What it shows.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }

    /// Moves it on.
    pub fn advance(&self, by: Duration) {
        self.0.store(self.now().after(by).as_millis(), Ordering::SeqCst);
    }

    /// As the port takes it.
    pub fn clock(&self) -> Clock {
        let clock = self.clone();
        Arc::new(move || clock.now())
    }
}

/// Envelope encryption that is bound to a context and hides what it holds.
pub async fn keys_contract(make: impl AsyncFn() -> Arc<dyn Keys>) {
    let keys = make().await;
    let secret = b"a secret of some length";
    let sealed = keys.seal("store:one", secret).await.expect("seals");
    let opened = keys.open("store:one", &sealed).await.expect("opens under its context");
    assert_eq!(&opened[..], secret);
    assert!(!sealed.windows(secret.len()).any(|part| part == secret), "the sealed form shows the secret");
    let again = keys.seal("store:one", secret).await.expect("seals");
    assert_ne!(sealed, again, "sealing twice gives the same: equal secrets could be recognised");

    let other = keys.open("store:two", &sealed).await;
    assert!(matches!(other, Err(KeysError::DoesNotOpen)), "opened under another context");
    for position in [0, sealed.len() / 2, sealed.len() - 1] {
        let mut changed = sealed.clone();
        changed[position] ^= 1;
        let opened = keys.open("store:one", &changed).await;
        assert!(matches!(opened, Err(KeysError::DoesNotOpen)), "opened after byte {position} was changed");
    }
    for cut in [0, 1, sealed.len() - 1] {
        let opened = keys.open("store:one", &sealed[..cut]).await;
        assert!(matches!(opened, Err(KeysError::DoesNotOpen)), "opened when cut to {cut} bytes");
    }
    let empty = keys.seal("store:one", b"").await.expect("seals nothing at all");
    assert!(keys.open("store:one", &empty).await.expect("opens").is_empty());
}

/// Rights to a store that was registered with `secret`; `unknown` is one that was not. `make` gives the port and both.
pub async fn credentials_contract(
    make: impl AsyncFn() -> (Arc<dyn Credentials>, Store, Store),
    secret: &str,
) {
    let (credentials, store, unknown) = make().await;
    let now = Timestamp::from_millis(1_795_359_845_120);
    let life = Duration::from_secs(900);
    let key = "in/clip.mov".parse().expect("a key");
    let grants = Grants { read: vec![Location { store: store.id, key }], write: Vec::new() };
    for grants in [grants, Grants::whole()] {
        let minted =
            credentials.mint(&store, &grants, life, now).await.expect("a right to a store that is there");
        assert!(!format!("{minted:?}").contains(secret), "its Debug shows the secret");
        assert!(minted.expires_at.is_none_or(|at| at > now), "it has ended before it began");
        assert!(minted.expires_at.is_some() || !minted.narrowed, "a narrowed right ends one day");
    }
    let error = credentials.mint(&unknown, &Grants::whole(), life, now).await.expect_err("no such store");
    assert_eq!(error.store, unknown.name, "the error names the store");
    assert!(!error.to_string().contains(secret), "the error shows the secret");
}

/// What holds for every provider of instances, whatever its pools are.
pub async fn instances_contract(make: impl AsyncFn() -> Arc<dyn Instances>) {
    let instances = make().await;
    let pool: PoolName = "no-such-pool-anywhere".parse().expect("a pool name");
    let unknown =
        |result: &InstancesError| matches!(result, InstancesError::NoSuchPool(name) if *name == pool);
    let status = instances.status(&pool).await.expect_err("there is no such pool");
    assert!(unknown(&status), "{status}");
    let launch = instances.launch(&pool, 1).await.expect_err("there is no such pool");
    assert!(unknown(&launch), "{launch}");
    let gone = InstanceId::new(Timestamp::from_millis(1), 1);
    match instances.retire(&pool, gone).await {
        Ok(()) => {}
        Err(error) => assert!(unknown(&error), "an instance that is gone is no error: {error}"),
    }
}
