//! Engine versions and submissions over REST, with as little of our own as possible in the way.

use anyhow::{Context, Result};
use futures::StreamExt;
use serde_json::{Value, json};
use telecine_tests::up::{Up, text};

use crate::floor::Limits;

/// A client of the API.
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    key: String,
}

impl Client {
    /// With a fresh API key of `up`.
    pub(crate) fn of(up: &Up) -> Self {
        let key = text(&up.cli(&["keys", "create", "--name", "bench"]), "/secret");
        Self { http: reqwest::Client::new(), url: up.url(), key }
    }

    /// Sends JSON, expects JSON.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.http.post(format!("{}{path}", self.url)).bearer_auth(&self.key).json(body);
        let response = request.send().await?;
        let (status, answer) = (response.status(), response.text().await?);
        anyhow::ensure!(status.is_success(), "POST {path}: {status}: {answer}");
        Ok(serde_json::from_str(&answer)?)
    }

    /// Reads JSON.
    pub(crate) async fn read(&self, path: &str) -> Result<Value> {
        let request = self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.key);
        Ok(request.send().await?.error_for_status()?.json().await?)
    }

    /// Waits on the job's event stream until it is over; returns the last state.
    pub(crate) async fn wait(&self, job: &str) -> Result<String> {
        let request = self.http.get(format!("{}/v1/jobs/{job}/events", self.url)).bearer_auth(&self.key);
        let mut stream = request.send().await?.error_for_status()?.bytes_stream();
        let mut seen = String::new();
        while let Some(chunk) = stream.next().await {
            seen.push_str(&String::from_utf8_lossy(&chunk?));
            for state in ["succeeded", "failed", "canceled", "expired"] {
                if seen.contains(&format!("\"state\":\"{state}\"")) {
                    return Ok(state.to_owned());
                }
            }
        }
        let job = self.read(&format!("/v1/jobs/{job}")).await?;
        job["state"].as_str().map(ToOwned::to_owned).context("the job has a state")
    }

    /// Publishes an engine version whose containers get these limits.
    pub(crate) async fn publish(&self, service: &str, launch: Value, limits: Limits) -> Result<()> {
        let memory_bytes = limits.memory_mebibytes << 20;
        let resources = json!({
            "cpu_milli": limits.cpu_milli, "memory_bytes": memory_bytes, "scratch_bytes": 0, "gpus": 0,
        });
        let version = json!({
            "version": "1.0.0", "launch": launch, "resources": resources,
            "processing_schema": true, "lifecycle": "stable", "changelog": "",
        });
        self.post(&format!("/v1/services/{service}/engine-versions"), &version).await.map(drop)
    }
}

/// A job that does nothing.
pub(crate) fn nothing(service: &str) -> Value {
    json!({"service": service, "composition": {"inputs": {}, "outputs": {}}})
}
