//! A bucket of an S3-compatible service in this process, as a store of a system under test.

use telecine_test_support::s3::{ACCESS_KEY, Behaviour, SECRET_KEY, Service};
use telecine_tests::up::{Up, text};

/// The service and what it runs on.
pub(crate) struct Bucket {
    pub(crate) service: Service,
    _runtime: tokio::runtime::Runtime,
}

impl Bucket {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime for the service");
        let service = runtime.block_on(Service::start(Behaviour::default()));
        Self { service, _runtime: runtime }
    }

    /// Registers it with `up`, with real keys, and proves its permissions; returns the store's id.
    pub(crate) fn store(&self, up: &Up) -> String {
        let url = self.service.url();
        let arguments =
            ["stores", "create", "bucket", "--bucket", "media", "--endpoint", &url, "--allow-http"];
        let arguments: Vec<&str> = arguments.into_iter().chain(["--access-key-id", ACCESS_KEY]).collect();
        let store = up.cli_with(&[("TELECINE_SECRET_ACCESS_KEY", SECRET_KEY)], &arguments);
        let id = text(&store, "/id");
        up.cli(&["stores", "validate", &id]);
        id
    }

    /// What is under `key`, as text without blanks around it.
    pub(crate) fn text(&self, key: &str) -> String {
        let bytes = self.service.object(key).unwrap_or_else(|| panic!("nothing is under {key}"));
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}
