//! A factory: what is done to objects that arrive, and the decision whether one of them is meant.
//!
//! Pure: whether an object was seen before, is an output of the factory itself, or lies in a store that was never
//! proven, is known by the caller, which reports it with the same [`NoMatch`].

use std::collections::BTreeMap;

use semver::Version;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::composition::{Composition, InvalidComposition, UnknownPlaceholder, inflate};
use crate::id::{AccountId, FactoryId, JobId, RegionName, ServiceName, StoreId, WatchRuleId};
use crate::job::{RetryPolicy, Timeouts};
use crate::location::{Location, ObjectKey, ObjectVersion};
use crate::resources::Resources;
use crate::time::Timestamp;

pub use crate::location::is_hidden;

/// The priority of a job for which nobody chose one.
pub const DEFAULT_PRIORITY: u16 = 500;

/// Which arriving objects make a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchRule {
    /// Its id, under which it remembers what it has seen.
    pub id: WatchRuleId,
    /// The store it watches.
    pub store: StoreId,
    /// Keys must begin with this, exactly; any if empty.
    #[serde(default)]
    pub prefix: String,
    /// Keys must end with one of these, in any case; any if empty.
    #[serde(default)]
    pub suffixes: Vec<String>,
    /// Whether it is on.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// What a factory's jobs get unless the call says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobDefaults {
    /// 0 to 1000, higher first.
    pub priority: u16,
    /// What a job needs; the engine version's resources when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// How often a job may be tried again.
    pub retry: RetryPolicy,
    /// How long a job may take.
    pub timeouts: Timeouts,
    /// Labels of every job.
    pub labels: BTreeMap<String, String>,
}

impl Default for JobDefaults {
    fn default() -> Self {
        Self {
            priority: DEFAULT_PRIORITY,
            resources: None,
            retry: RetryPolicy::default(),
            timeouts: Timeouts::default(),
            labels: BTreeMap::new(),
        }
    }
}

/// A factory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Factory {
    /// Its id.
    pub id: FactoryId,
    /// Whose it is.
    pub account: AccountId,
    /// A name for people.
    pub name: String,
    /// The kind of work.
    pub service: ServiceName,
    /// The production version: what its jobs run until the user changes it.
    pub engine_version: Version,
    /// The document of its jobs, with `{input.…}` placeholders (see [`crate::composition::inflate`]).
    pub composition: Value,
    /// Which arriving objects make a job.
    #[serde(default)]
    pub watch: Vec<WatchRule>,
    /// What its jobs get unless the call says otherwise.
    #[serde(default)]
    pub defaults: JobDefaults,
    /// Where its jobs run; follows the data when absent (SPEC 5.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<RegionName>,
    /// Whether it makes jobs.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// Number of its last change, from 1.
    pub version: u64,
}

fn yes() -> bool {
    true
}

/// An object that was made, or replaced, in a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArrivedObject {
    /// Where it is.
    pub location: Location,
    /// Which version of it.
    pub version: ObjectVersion,
}

/// Why an object makes no job under a rule. Shown to people; kept with the object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NoMatch {
    /// The factory is off.
    #[error("the factory is disabled")]
    FactoryDisabled,
    /// The rule is off.
    #[error("the watch rule is disabled")]
    RuleDisabled,
    /// The rule is about another store.
    #[error("the watch rule is about another store")]
    OtherStore,
    /// The key begins with something else.
    #[error("the key does not begin with `{expected}`")]
    Prefix {
        /// The rule's prefix.
        expected: String,
    },
    /// The key ends with something else.
    #[error("the key does not end with {}", either(.expected))]
    Suffix {
        /// The rule's suffixes.
        expected: Vec<String>,
    },
    /// The key is one of Telecine's hidden names.
    #[error("names that begin with `.telecine-` are Telecine's own")]
    HiddenName,
    /// The key ends with a slash: a marker that some tools leave for a folder.
    #[error("the key ends with a slash: it marks a folder and is no media")]
    FolderMarker,
    /// The object has no bytes.
    #[error("the object is empty")]
    Empty,
    /// A job of the same factory made it (SPEC 2.4).
    #[error("it is an output of {job}, which the same factory made")]
    OwnOutput {
        /// That job.
        job: JobId,
    },
    /// The store's access was never proven (SPEC 2.3).
    #[error("access to the store was never proven; run `validate` on it")]
    StoreNotValidated,
}

fn either(suffixes: &[String]) -> String {
    let quoted: Vec<String> = suffixes.iter().map(|suffix| format!("`{suffix}`")).collect();
    quoted.join(" or ")
}

/// Why a factory's document does not become a composition for an object.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompositionError {
    /// A placeholder is none.
    #[error(transparent)]
    Placeholder(#[from] UnknownPlaceholder),
    /// The inflated document is no composition.
    #[error(transparent)]
    Invalid(#[from] InvalidComposition),
}

impl Factory {
    /// Decides whether `object` makes a job under `rule`. That a rule or the factory is off is said only of objects
    /// that would match otherwise.
    ///
    /// # Errors
    /// The reason why not.
    pub fn match_object(&self, rule: &WatchRule, object: &ArrivedObject) -> Result<(), NoMatch> {
        let key = &object.location.key;
        if object.location.store != rule.store {
            Err(NoMatch::OtherStore)
        } else if is_hidden(key) {
            Err(NoMatch::HiddenName)
        } else if key.is_folder() {
            Err(NoMatch::FolderMarker)
        } else if !key.as_str().starts_with(&rule.prefix) {
            Err(NoMatch::Prefix { expected: rule.prefix.clone() })
        } else if !rule.accepts_suffix(key) {
            Err(NoMatch::Suffix { expected: rule.suffixes.clone() })
        } else if object.version.size_bytes == 0 {
            Err(NoMatch::Empty)
        } else if !rule.enabled {
            Err(NoMatch::RuleDisabled)
        } else if !self.enabled {
            Err(NoMatch::FactoryDisabled)
        } else {
            Ok(())
        }
    }

    /// The composition of the job that the object under `key` makes.
    ///
    /// # Errors
    /// When the document has an unknown placeholder, or is not a composition once they are replaced.
    pub fn composition_for(&self, key: &ObjectKey) -> Result<Composition, CompositionError> {
        Ok(Composition::from_value(&inflate(&self.composition, key)?)?)
    }
}

impl WatchRule {
    fn accepts_suffix(&self, key: &ObjectKey) -> bool {
        let key = key.as_str().to_lowercase();
        self.suffixes.is_empty() || self.suffixes.iter().any(|suffix| key.ends_with(&suffix.to_lowercase()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn store(number: u128) -> StoreId {
        StoreId::new(NOW, number)
    }

    fn factory() -> Factory {
        serde_json::from_value(json!({
            "id": FactoryId::new(NOW, 1),
            "account": AccountId::new(NOW, 1),
            "name": "renditions",
            "service": "transform",
            "engine_version": "1.2.0",
            "composition": {
                "inputs": {"source": {"store": store(1), "key": "{input.key}"}},
                "outputs": {"main": {"store": store(2), "key": "out/{input.stem}.mp4"}},
            },
            "watch": [{"id": WatchRuleId::new(NOW, 1), "store": store(1), "prefix": "in/", "suffixes": [".mov", ".MXF"]}],
            "created_at": NOW,
            "version": 1,
        }))
        .unwrap()
    }

    fn arrived(key: &str, size_bytes: u64) -> ArrivedObject {
        ArrivedObject {
            location: Location { store: store(1), key: key.parse().unwrap() },
            version: ObjectVersion { etag: "e".to_owned(), version_id: None, size_bytes },
        }
    }

    fn outcome(factory: &Factory, object: &ArrivedObject) -> Result<(), NoMatch> {
        factory.match_object(&factory.watch[0], object)
    }

    #[test]
    fn defaults_are_filled_in() {
        let factory = factory();
        assert!(factory.enabled && factory.watch[0].enabled);
        assert_eq!(factory.defaults, JobDefaults::default());
        assert_eq!(factory.defaults.priority, 500);
        let text = serde_json::to_string(&factory).unwrap();
        assert_eq!(serde_json::from_str::<Factory>(&text).unwrap(), factory);
    }

    #[test]
    fn a_rule_takes_what_it_names_in_any_case_of_the_suffix() {
        let factory = factory();
        for key in ["in/a.mov", "in/A.MOV", "in/deep/b.mxf", "in/.hidden.mov", "in/100%2e.mov"] {
            assert_eq!(outcome(&factory, &arrived(key, 5)), Ok(()), "{key}");
        }
        let mut any = factory;
        any.watch[0].suffixes.clear();
        any.watch[0].prefix.clear();
        assert_eq!(outcome(&any, &arrived("whatever", 5)), Ok(()));
    }

    #[test]
    fn every_other_object_has_a_reason() {
        let factory = factory();
        let suffix = NoMatch::Suffix { expected: vec![".mov".to_owned(), ".MXF".to_owned()] };
        assert_eq!(suffix.to_string(), "the key does not end with `.mov` or `.MXF`");
        let cases = [
            ("out/a.mov", 5, NoMatch::Prefix { expected: "in/".to_owned() }),
            ("IN/a.mov", 5, NoMatch::Prefix { expected: "in/".to_owned() }),
            ("in/a.mp4", 5, suffix),
            ("in/a.mov", 0, NoMatch::Empty),
            ("in/folder.mov/", 0, NoMatch::FolderMarker),
            ("in/.telecine-upload-1-0.mov", 5, NoMatch::HiddenName),
            ("in/.telecine-x/a.mov", 5, NoMatch::HiddenName),
        ];
        for (key, size, reason) in cases {
            assert_eq!(outcome(&factory, &arrived(key, size)), Err(reason), "{key}");
        }
        let mut elsewhere = arrived("in/a.mov", 5);
        elsewhere.location.store = store(2);
        assert_eq!(outcome(&factory, &elsewhere), Err(NoMatch::OtherStore));
    }

    #[test]
    fn what_is_off_is_said_only_of_what_would_match() {
        let mut factory = factory();
        factory.enabled = false;
        assert_eq!(outcome(&factory, &arrived("in/a.mov", 5)), Err(NoMatch::FactoryDisabled));
        factory.watch[0].enabled = false;
        assert_eq!(outcome(&factory, &arrived("in/a.mov", 5)), Err(NoMatch::RuleDisabled));
        assert_eq!(outcome(&factory, &arrived("in/a.mov", 0)), Err(NoMatch::Empty));
    }

    #[test]
    fn the_composition_is_inflated_and_read() {
        let composition = factory().composition_for(&"in/a b.mov".parse().unwrap()).unwrap();
        assert_eq!(composition.inputs.values().next().unwrap().key.as_str(), "in/a b.mov");
        assert_eq!(composition.outputs.values().next().unwrap().key.as_str(), "out/a b.mp4");
    }

    #[test]
    fn a_document_that_fits_no_object_says_where() {
        let mut factory = factory();
        factory.composition["outputs"]["main"]["key"] = json!("{input.size}");
        let error = factory.composition_for(&"in/a.mov".parse().unwrap()).unwrap_err();
        assert!(error.to_string().starts_with("/outputs/main/key: unknown placeholder"), "{error}");
        factory.composition["outputs"]["main"]["key"] = json!("{input.extension}");
        let error = factory.composition_for(&"in/extensionless".parse().unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the composition is not valid: /outputs/main/key: an object key may not be empty"
        );
    }
}
