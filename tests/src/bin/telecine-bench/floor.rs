//! The floor: the same container by the Docker API alone, with the same options that the agent uses, its limits among them.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

/// What a container may use.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) cpu_milli: u64,
    pub(crate) memory_mebibytes: u64,
}

/// One kept connection to the Docker engine.
pub(crate) struct Docker {
    sender: SendRequest<Full<Bytes>>,
}

impl Docker {
    /// Connects to the default socket.
    pub(crate) async fn connect() -> Result<Self> {
        let stream = UnixStream::connect("/var/run/docker.sock").await.context("Docker's socket")?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the sender.
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    async fn call(&mut self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let bytes = body.map(|body| body.to_string()).unwrap_or_default();
        let request = hyper::Request::builder()
            .method(method)
            .uri(format!("/v1.41{path}"))
            .header("host", "docker")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(bytes)))?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// Fetches an image by digest, so that neither side of a comparison pays for it.
    pub(crate) async fn pull(&mut self, image: &str) -> Result<()> {
        self.call("POST", &format!("/images/create?fromImage={image}"), None).await.map(drop)
    }

    /// Creates, starts, waits for and removes a container; returns its exit code.
    pub(crate) async fn run(
        &mut self,
        image: &str,
        limits: Limits,
        arguments: &[String],
        bind: Option<&str>,
    ) -> Result<i64> {
        let memory = limits.memory_mebibytes << 20;
        let options = json!({
            "Image": image, "Cmd": arguments, "User": "65534:65534",
            "HostConfig": {
                "NetworkMode": "none", "ReadonlyRootfs": true, "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"], "PidsLimit": 512, "IpcMode": "none", "Init": true,
                "NanoCpus": limits.cpu_milli * 1_000_000, "Memory": memory, "MemorySwap": memory,
                "LogConfig": {"Type": "local"}, "Tmpfs": {"/tmp": "size=67108864,noexec,nosuid,nodev"},
                "Binds": bind.into_iter().collect::<Vec<_>>(),
            },
        });
        let created = self.call("POST", "/containers/create", Some(options)).await?;
        let id = created["Id"].as_str().context("Docker names the container")?.to_owned();
        self.call("POST", &format!("/containers/{id}/start"), None).await?;
        let waited = self.call("POST", &format!("/containers/{id}/wait"), None).await?;
        self.call("DELETE", &format!("/containers/{id}"), None).await?;
        waited["StatusCode"].as_i64().context("Docker tells the exit code")
    }
}
