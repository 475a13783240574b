//! What is wrong with a request: every problem at once, each with the place where it is (SPEC 2.5, 16).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Where: a JSON pointer into the request, empty for the whole.
    pub pointer: String,
    /// Stable word for programs.
    pub code: String,
    /// What is wrong and what to do, for a person.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.pointer.is_empty() { "the request" } else { &self.pointer };
        write!(f, "{place}: {}", self.message)
    }
}

impl Problem {
    /// A problem at `pointer`.
    pub fn new(pointer: impl Into<String>, code: &str, message: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), code: code.to_owned(), message: message.into() }
    }
}

/// All of them in one line, for errors and logs.
pub fn join(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
}

/// `pointer` with one more segment.
pub fn child(pointer: &str, segment: &str) -> String {
    format!("{pointer}/{}", segment.replace('~', "~0").replace('/', "~1"))
}

/// Reads the fields of an object one by one and collects what is wrong with them.
pub(crate) struct Fields<'a> {
    pointer: String,
    fields: Option<&'a Map<String, Value>>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The fields of `value`; anything but an object is a problem.
    pub(crate) fn of(value: &'a Value, pointer: &str, problems: &mut Vec<Problem>) -> Self {
        let fields = value.as_object();
        if fields.is_none() {
            problems.push(wrong_type(pointer, "an object", value));
        }
        Self { pointer: pointer.to_owned(), fields, known: Vec::new() }
    }

    /// Where a field is.
    pub(crate) fn at(&self, name: &str) -> String {
        child(&self.pointer, name)
    }

    /// A field as it is; `null` counts as absent.
    pub(crate) fn raw(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.push(name);
        self.fields?.get(name).filter(|value| !value.is_null())
    }

    /// A field that deserialises into `T`; what does not is a problem that repeats serde's words.
    pub(crate) fn parsed<T: serde::de::DeserializeOwned>(
        &mut self,
        name: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<T> {
        let value = self.raw(name)?;
        match T::deserialize(value) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                problems.push(Problem::new(self.at(name), "invalid_value", error.to_string()));
                None
            }
        }
    }

    /// Fields that nobody asked for are problems.
    pub(crate) fn finish(self, problems: &mut Vec<Problem>) {
        for name in self.fields.into_iter().flat_map(Map::keys) {
            if !self.known.contains(&name.as_str()) {
                let excerpt: String = name.chars().take(80).collect();
                let message = format!("unknown field `{excerpt}`; known are {}", self.known.join(", "));
                problems.push(Problem::new(child(&self.pointer, name), "unknown_field", message));
            }
        }
    }
}

/// The problem of a value that should be something else.
pub(crate) fn wrong_type(pointer: &str, expected: &str, value: &Value) -> Problem {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    Problem::new(pointer, "wrong_type", format!("expected {expected}, found {found}"))
}
