//! A runtime whose engines do what a test tells them.

use std::collections::BTreeSet;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use telecine_agent::runtime::{
    ContainerRuntime, ContainerSpec, EngineSignal, Exit, Output, PullProgress, RuntimeError, Usage,
};
use telecine_domain::engine::ImageReference;
use telecine_domain::id::InstanceId;
use telecine_domain::instance::RuntimeKind;
use tokio::sync::{mpsc, watch};

/// One engine at a time.
pub(crate) struct Fake {
    pub(crate) kind: RuntimeKind,
    output: Mutex<Option<mpsc::Sender<Output>>>,
    exit: watch::Sender<Option<Exit>>,
    /// What was asked, in order, with the time on tokio's clock.
    pub(crate) asked: Mutex<Vec<(String, tokio::time::Instant)>>,
    /// Whether SIGTERM ends the engine.
    pub(crate) polite: bool,
    pub(crate) image_absent: Mutex<bool>,
    /// Whether the registry answers nothing, for ever.
    pub(crate) registry_silent: Mutex<bool>,
}

impl Fake {
    pub(crate) fn new(kind: RuntimeKind, polite: bool) -> Self {
        Self {
            kind,
            output: Mutex::default(),
            exit: watch::Sender::new(None),
            asked: Mutex::default(),
            polite,
            image_absent: Mutex::new(false),
            registry_silent: Mutex::new(false),
        }
    }

    pub(crate) async fn print(&self, text: &str) {
        let sender = self.output.lock().unwrap().clone().expect("started");
        sender.send(Output { stdout: true, data: Bytes::copy_from_slice(text.as_bytes()) }).await.unwrap();
    }

    pub(crate) fn exit(&self, code: i32) {
        self.output.lock().unwrap().take();
        self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            exit.get_or_insert(Exit { code, out_of_memory: false });
            first
        });
    }

    fn note(&self, what: &str) {
        self.asked.lock().unwrap().push((what.to_owned(), tokio::time::Instant::now()));
    }

    pub(crate) fn words(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|(word, _)| word.clone()).collect()
    }

    pub(crate) fn when(&self, what: &str) -> tokio::time::Instant {
        let asked = self.asked.lock().unwrap();
        asked.iter().find(|(word, _)| word == what).unwrap_or_else(|| panic!("{what} not in {asked:?}")).1
    }
}

#[async_trait]
impl ContainerRuntime for Fake {
    fn kind(&self) -> RuntimeKind {
        self.kind
    }

    async fn check(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn images(&self) -> Result<BTreeSet<String>, RuntimeError> {
        Ok(BTreeSet::new())
    }

    async fn pull(
        &self,
        _: &ImageReference,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<(), RuntimeError> {
        self.note("pull");
        if *self.registry_silent.lock().unwrap() {
            std::future::pending::<()>().await;
        }
        progress.send_replace(PullProgress { done_bytes: 40, total_bytes: 100 });
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        *self.image_absent.lock().unwrap() = false;
        Ok(())
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        self.note("create");
        if *self.image_absent.lock().unwrap() {
            return Err(RuntimeError::ImageAbsent(format!("{:?}", spec.program)));
        }
        Ok(())
    }

    async fn start(&self, _: &str) -> Result<mpsc::Receiver<Output>, RuntimeError> {
        self.note("start");
        let (sender, receiver) = mpsc::channel(16);
        *self.output.lock().unwrap() = Some(sender);
        Ok(receiver)
    }

    async fn wait(&self, _: &str) -> Result<Exit, RuntimeError> {
        let mut exit = self.exit.subscribe();
        Ok(exit.wait_for(Option::is_some).await.unwrap().unwrap())
    }

    async fn signal(&self, _: &str, signal: EngineSignal) -> Result<(), RuntimeError> {
        self.note(&format!("{signal:?}"));
        match signal {
            EngineSignal::Kill => self.exit(137),
            EngineSignal::Terminate if self.polite => self.exit(143),
            EngineSignal::Terminate => {}
        }
        Ok(())
    }

    async fn usage(&self, _: &str) -> Result<Usage, RuntimeError> {
        Ok(Usage::default())
    }

    async fn remove(&self, _: &str) -> Result<(), RuntimeError> {
        self.note("remove");
        self.exit(137);
        Ok(())
    }

    async fn ours(&self, _: &InstanceId) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }
}
