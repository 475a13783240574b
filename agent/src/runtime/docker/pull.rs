//! Pulling an image by digest, and what each kind of refusal means.

use std::collections::BTreeMap;

use bollard::errors::Error;
use bollard::query_parameters::CreateImageOptions;
use futures::StreamExt;
use telecine_domain::engine::ImageReference;
use tokio::sync::watch;

use crate::runtime::{PullProgress, RuntimeError};

pub(super) async fn pull(
    client: &bollard::Docker,
    image: &ImageReference,
    progress: &watch::Sender<PullProgress>,
) -> Result<(), RuntimeError> {
    // By digest and without a tag: a tag could have moved.
    let options = CreateImageOptions { from_image: Some(image.to_string()), ..Default::default() };
    let mut events = Box::pin(client.create_image(Some(options), None, None));
    let mut layers = Layers::default();
    while let Some(event) = events.next().await {
        let event = event.map_err(|error| classify(image, &error))?;
        let detail = event.progress_detail.as_ref();
        let number = |amount: Option<i64>| amount.and_then(|n| u64::try_from(n).ok());
        let current = number(detail.and_then(|detail| detail.current));
        let total = number(detail.and_then(|detail| detail.total));
        layers.take(event.id.unwrap_or_default(), event.status.as_deref().unwrap_or(""), current, total);
        progress.send_replace(layers.sum());
    }
    Ok(())
}

/// What is known of each layer.
#[derive(Default)]
struct Layers(BTreeMap<String, PullProgress>);

impl Layers {
    fn take(&mut self, layer: String, status: &str, current: Option<u64>, total: Option<u64>) {
        match (status, total) {
            ("Downloading", Some(total)) => {
                let done = current.unwrap_or(0).min(total);
                self.0.insert(layer, PullProgress { done_bytes: done, total_bytes: total });
            }
            ("Download complete" | "Pull complete" | "Extracting", _) => {
                if let Some(known) = self.0.get_mut(&layer) {
                    known.done_bytes = known.total_bytes;
                }
            }
            _ => {}
        }
    }

    fn sum(&self) -> PullProgress {
        self.0.values().fold(PullProgress::default(), |sum, layer| PullProgress {
            done_bytes: sum.done_bytes + layer.done_bytes,
            total_bytes: sum.total_bytes + layer.total_bytes,
        })
    }
}

/// Docker answers 404 for an image that the registry does not have (or does not show to us), 500 for a registry that
/// it cannot reach; an error in the middle of a pull comes as text only.
fn classify(image: &ImageReference, error: &Error) -> RuntimeError {
    let (status, answer) = match error {
        Error::DockerResponseServerError { status_code, message } => (*status_code, message.clone()),
        Error::DockerStreamError { error } => (0, error.clone()),
        other => return RuntimeError::Unavailable { runtime: "Docker", answer: other.to_string() },
    };
    let lower = answer.to_ascii_lowercase();
    const MISSING: [&str; 6] =
        ["manifest unknown", "not found", "does not exist", "no such image", "unauthorized", "denied"];
    let image = image.to_string();
    if matches!(status, 401 | 403 | 404) || MISSING.iter().any(|word| lower.contains(word)) {
        RuntimeError::ImageNotFound { image, answer }
    } else {
        RuntimeError::RegistryUnreachable { image, answer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageReference {
        format!("127.0.0.1:5000/a@sha256:{}", "0".repeat(64)).parse().unwrap()
    }

    #[test]
    fn refusals_are_told_from_silence() {
        let server = |status_code, message: &str| Error::DockerResponseServerError {
            status_code,
            message: message.to_owned(),
        };
        let missing = |error: &Error| matches!(classify(&image(), error), RuntimeError::ImageNotFound { .. });
        assert!(missing(&server(404, "manifest for 127.0.0.1:5000/a@sha256:0 not found: manifest unknown")));
        assert!(missing(&server(500, "unauthorized: authentication required")));
        assert!(missing(&Error::DockerStreamError { error: "manifest unknown".to_owned() }));
        let down = server(
            500,
            "Get \"http://127.0.0.1:5000/v2/\": dial tcp 127.0.0.1:5000: connect: connection refused",
        );
        assert!(matches!(classify(&image(), &down), RuntimeError::RegistryUnreachable { .. }));
        assert!(matches!(classify(&image(), &Error::RequestTimeoutError), RuntimeError::Unavailable { .. }));
    }

    #[test]
    fn layers_add_up_and_finish() {
        let mut layers = Layers::default();
        layers.take("a".into(), "Downloading", Some(10), Some(100));
        layers.take("b".into(), "Downloading", Some(5), Some(50));
        layers.take("c".into(), "Waiting", None, None);
        assert_eq!(layers.sum(), PullProgress { done_bytes: 15, total_bytes: 150 });
        layers.take("a".into(), "Pull complete", None, None);
        layers.take("b".into(), "Extracting", Some(1), Some(900));
        assert_eq!(layers.sum(), PullProgress { done_bytes: 150, total_bytes: 150 });
    }
}
