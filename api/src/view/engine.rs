//! An engine version as callers see it, and what they send to publish one.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use telecine_domain::engine as domain;
use telecine_domain::time::Timestamp;
use utoipa::ToSchema;

use super::values::Resources;

/// One published version of a service's engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EngineVersion {
    /// The service whose work it does.
    pub service: String,
    /// Semantic version.
    pub version: String,
    /// How it is started.
    pub launch: Launch,
    /// What a job of it needs unless the job says otherwise.
    pub resources: Resources,
    /// JSON Schema (2020-12) of a composition's `processing`.
    pub processing_schema: Value,
    /// `candidate`, `stable`, `deprecated` or `withdrawn`.
    #[schema(value_type = String)]
    pub lifecycle: domain::Lifecycle,
    /// After this time it is refused.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// What changed, for people.
    pub changelog: String,
}

/// How an engine is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// `grpc`: a container that serves `telecine.engine.v1.Engine`; `plain`: a container that runs a program; `command`: a
    /// program of the instance itself, without a sandbox.
    pub kind: String,
    /// The image by digest, for `grpc` and `plain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Absolute path of the program, for `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Arguments, for `plain` and `command`; `{input.NAME}` and `{output.NAME}` become paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
}

impl From<domain::Launch> for Launch {
    fn from(from: domain::Launch) -> Self {
        match from {
            domain::Launch::Grpc { image } => Self {
                kind: "grpc".to_owned(),
                image: Some(image.to_string()),
                program: None,
                arguments: Vec::new(),
            },
            domain::Launch::Plain { image, arguments } => {
                Self { kind: "plain".to_owned(), image: Some(image.to_string()), program: None, arguments }
            }
            domain::Launch::Command { program, arguments } => {
                Self { kind: "command".to_owned(), image: None, program: Some(program), arguments }
            }
        }
    }
}

impl From<domain::EngineVersion> for EngineVersion {
    fn from(from: domain::EngineVersion) -> Self {
        Self {
            service: from.service.to_string(),
            version: from.version.to_string(),
            launch: from.launch.into(),
            resources: from.resources.into(),
            processing_schema: from.processing_schema,
            lifecycle: from.lifecycle,
            expires_at: from.expires_at,
            changelog: from.changelog,
        }
    }
}

/// A version to publish.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishEngineVersion {
    /// Semantic version; a published one never changes.
    pub version: String,
    /// How it is started.
    pub launch: Launch,
    /// What a job of it needs unless the job says otherwise.
    pub resources: Resources,
    /// JSON Schema (2020-12) of a composition's `processing`; anything is accepted unless given.
    #[serde(default = "anything")]
    pub processing_schema: Value,
    /// `candidate` (unless given) or `stable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<String>,
    /// After this time it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// What changed, for people.
    #[serde(default)]
    pub changelog: String,
}

fn anything() -> Value {
    Value::Bool(true)
}

/// A kind of work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Service {
    /// Its name.
    pub id: String,
}
