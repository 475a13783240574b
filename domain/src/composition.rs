//! A composition: the JSON document that describes one piece of work, and its placeholders.
//!
//! `inputs` and `outputs` are the same for every service; `processing` is the service's own and is checked against the
//! JSON Schema kept on the engine version. A factory's composition may hold `{input.…}` placeholders in any string;
//! `inflate` replaces them for one object.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::id::{SlotName, StoreId};
use crate::location::{Location, ObjectKey, is_hidden};

/// Most inputs, and most outputs, a composition may name.
pub const MAX_SLOTS: usize = 32;

/// One piece of work: what to read, what to do, where to write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Composition {
    /// Objects the engine reads, by name.
    pub inputs: BTreeMap<SlotName, Location>,
    /// What the engine does with them; its shape is the engine version's.
    #[serde(default)]
    pub processing: Value,
    /// Objects (or folders, where the key ends with `/`) the engine makes, by name.
    pub outputs: BTreeMap<SlotName, Location>,
}

/// Something wrong with a document, and where.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{pointer}: {message}")]
pub struct CompositionProblem {
    /// JSON pointer of the value that is wrong; empty for the whole document.
    pub pointer: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// A document is not a composition; holds every problem, in the order of the document.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the composition is not valid: {}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct InvalidComposition {
    /// At least one.
    pub problems: Vec<CompositionProblem>,
}

impl Composition {
    /// Reads a document. Each location must name its store by id.
    ///
    /// # Errors
    /// With every problem at once: unknown or missing fields, names and keys that are none, more than [`MAX_SLOTS`]
    /// slots, a folder as an input, a hidden name, an output that would replace an input or another output.
    pub fn from_value(document: &Value) -> Result<Self, InvalidComposition> {
        let mut problems = Problems::default();
        let composition = read_document(document, &mut problems);
        problems.check_overlaps(&composition);
        if problems.0.is_empty() { Ok(composition) } else { Err(InvalidComposition { problems: problems.0 }) }
    }
}

/// Why a document cannot be inflated for an object.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{pointer}: unknown placeholder `{{{name}}}`; known are {{input.key}}, {{input.folder}}, {{input.name}}, {{input.stem}} and {{input.extension}}; write `{{{{` for a brace that is meant"
)]
pub struct UnknownPlaceholder {
    /// JSON pointer of the string that holds it.
    pub pointer: String,
    /// The text between the braces.
    pub name: String,
}

/// Replaces the placeholders of `template` with the parts of `key`; `{{` stands for a brace.
///
/// `{input.key}` is the whole key, `{input.folder}` what stands before the file name (with its slash),
/// `{input.name}` the file name, `{input.stem}` the file name without its extension, `{input.extension}` the extension.
/// The replaced text is never looked at again, so a hostile key cannot bring placeholders of its own.
///
/// # Errors
/// When a placeholder is not one of these, or its closing brace is missing.
pub fn inflate(template: &Value, key: &ObjectKey) -> Result<Value, UnknownPlaceholder> {
    inflate_at(template, key, "")
}

fn inflate_at(template: &Value, key: &ObjectKey, pointer: &str) -> Result<Value, UnknownPlaceholder> {
    Ok(match template {
        Value::String(text) => Value::String(inflate_text(text, key, pointer)?),
        Value::Array(items) => {
            let inflated =
                items.iter().enumerate().map(|(i, item)| inflate_at(item, key, &format!("{pointer}/{i}")));
            Value::Array(inflated.collect::<Result<_, _>>()?)
        }
        Value::Object(fields) => {
            let inflated = fields
                .iter()
                .map(|(name, value)| Ok((name.clone(), inflate_at(value, key, &below(pointer, name))?)));
            Value::Object(inflated.collect::<Result<_, _>>()?)
        }
        other => other.clone(),
    })
}

fn inflate_text(text: &str, key: &ObjectKey, pointer: &str) -> Result<String, UnknownPlaceholder> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        result.push_str(&rest[..open]);
        rest = &rest[open + 1..];
        if let Some(after) = rest.strip_prefix('{') {
            result.push('{');
            rest = after;
            continue;
        }
        let unknown = |name: &str| UnknownPlaceholder {
            pointer: pointer.to_owned(),
            name: name.chars().take(40).collect(),
        };
        let (name, after) = rest.split_once('}').ok_or_else(|| unknown(rest))?;
        result.push_str(part(name, key).ok_or_else(|| unknown(name))?);
        rest = after;
    }
    result.push_str(rest);
    Ok(result)
}

fn part<'k>(name: &str, key: &'k ObjectKey) -> Option<&'k str> {
    match name {
        "input.key" => Some(key.as_str()),
        "input.folder" => Some(key.folder()),
        "input.name" => Some(key.file_name()),
        "input.stem" => Some(key.stem()),
        "input.extension" => Some(key.extension()),
        _ => None,
    }
}

fn below(pointer: &str, name: &str) -> String {
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[derive(Default)]
struct Problems(Vec<CompositionProblem>);

impl Problems {
    fn add(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        self.0.push(CompositionProblem { pointer: pointer.into(), message: message.into() });
    }

    fn check_overlaps(&mut self, composition: &Composition) {
        for slot in composition.inputs.iter().filter(|(_, input)| input.key.is_folder()).map(|(slot, _)| slot)
        {
            self.add(format!("/inputs/{slot}/key"), "an input must be one object, not a folder");
        }
        let mut seen: BTreeMap<&Location, &SlotName> = BTreeMap::new();
        for (slot, output) in &composition.outputs {
            if let Some((input, _)) = composition.inputs.iter().find(|(_, location)| *location == output) {
                self.add(format!("/outputs/{slot}"), format!("would replace the input `{input}`"));
            }
            if let Some(other) = seen.insert(output, slot) {
                self.add(format!("/outputs/{slot}"), format!("is the same object as the output `{other}`"));
            }
        }
    }
}

fn read_document(document: &Value, problems: &mut Problems) -> Composition {
    let nothing = Composition { inputs: BTreeMap::new(), processing: Value::Null, outputs: BTreeMap::new() };
    let Value::Object(fields) = document else {
        problems.add("", "must be an object with `inputs`, `processing` and `outputs`");
        return nothing;
    };
    for name in fields.keys().filter(|name| !matches!(name.as_str(), "inputs" | "processing" | "outputs")) {
        problems.add(below("", name), "unknown field; known are inputs, processing and outputs");
    }
    Composition {
        inputs: read_slots(fields.get("inputs"), "/inputs", problems),
        processing: fields.get("processing").cloned().unwrap_or(Value::Null),
        outputs: read_slots(fields.get("outputs"), "/outputs", problems),
    }
}

fn read_slots(slots: Option<&Value>, pointer: &str, problems: &mut Problems) -> BTreeMap<SlotName, Location> {
    let slots = match slots {
        Some(Value::Object(slots)) => slots,
        Some(_) => {
            problems.add(pointer, "must be an object of names and locations");
            return BTreeMap::new();
        }
        None => {
            problems.add(pointer, "is missing");
            return BTreeMap::new();
        }
    };
    if slots.len() > MAX_SLOTS {
        problems.add(pointer, format!("has {} entries, at most {MAX_SLOTS} are allowed", slots.len()));
        return BTreeMap::new();
    }
    let read = slots.iter().filter_map(|(name, value)| {
        let here = below(pointer, name);
        let slot = name.parse::<SlotName>().map_err(|error| problems.add(&here, error.to_string())).ok();
        let location = read_location(value, &here, problems);
        slot.zip(location)
    });
    read.collect()
}

fn read_location(value: &Value, pointer: &str, problems: &mut Problems) -> Option<Location> {
    let Value::Object(fields) = value else {
        problems.add(pointer, "must be an object with `store` and `key`");
        return None;
    };
    for name in fields.keys().filter(|name| !matches!(name.as_str(), "store" | "key")) {
        problems.add(below(pointer, name), "unknown field; known are store and key");
    }
    let store: Option<StoreId> = read_text(fields.get("store"), &below(pointer, "store"), problems);
    let key: Option<ObjectKey> = read_text(fields.get("key"), &below(pointer, "key"), problems);
    if key.as_ref().is_some_and(is_hidden) {
        problems.add(below(pointer, "key"), "names that begin with `.telecine-` are Telecine's own");
    }
    Some(Location { store: store?, key: key? })
}

fn read_text<T: FromStr<Err: ToString>>(
    value: Option<&Value>,
    pointer: &str,
    problems: &mut Problems,
) -> Option<T> {
    match value {
        Some(Value::String(text)) => {
            text.parse().map_err(|error: T::Err| problems.add(pointer, error.to_string())).ok()
        }
        Some(_) => {
            problems.add(pointer, "must be a string");
            None
        }
        None => {
            problems.add(pointer, "is missing");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn placeholders_are_replaced_everywhere() {
        let key = "in/a clip.mov".parse().unwrap();
        let template = json!({"outputs": [{"key": "out/{input.stem}.mp4"}], "n": 3, "note": "{{literal} {input.folder}"});
        let inflated = inflate(&template, &key).unwrap();
        assert_eq!(
            inflated,
            json!({"outputs": [{"key": "out/a clip.mp4"}], "n": 3, "note": "{literal} in/"})
        );
    }

    #[test]
    fn a_key_cannot_bring_placeholders() {
        let key = "{input.key}{nonsense}.mov".parse().unwrap();
        assert_eq!(inflate(&json!("{input.stem}"), &key).unwrap(), json!("{input.key}{nonsense}"));
    }

    #[test]
    fn unknown_placeholders_are_named_with_their_place() {
        let key = "a.mov".parse().unwrap();
        let error = inflate(&json!({"a/b": ["{input.size}"]}), &key).unwrap_err();
        assert_eq!((error.pointer.as_str(), error.name.as_str()), ("/a~1b/0", "input.size"));
        assert_eq!(inflate(&json!("a{input.key"), &key).unwrap_err().name, "input.key");
        assert_eq!(inflate(&json!("}"), &key), Ok(json!("}")));
    }

    fn problems(document: &Value) -> Vec<String> {
        let invalid = Composition::from_value(document).unwrap_err();
        invalid.problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_document_is_read_like_serde_reads_it() {
        let store = StoreId::new(crate::time::Timestamp::from_millis(1), 1);
        let document = json!({
            "inputs": {"source": {"store": store, "key": "in/a.mov"}},
            "processing": {"anything": [1]},
            "outputs": {"main": {"store": store, "key": "out/"}, "poster": {"store": store, "key": "poster.jpg"}},
        });
        let read = Composition::from_value(&document).unwrap();
        assert_eq!(read, serde_json::from_value(document).unwrap());
    }

    #[test]
    fn every_problem_is_named_with_its_place() {
        let store = StoreId::new(crate::time::Timestamp::from_millis(1), 1);
        let found = problems(&json!({
            "input": {},
            "inputs": {"Bad Name": {"store": store, "key": "a"}, "a": {"store": "media", "key": "/etc/passwd", "x/y": 1}, "b": 7},
            "outputs": {"hidden": {"store": store, "key": "x/.telecine-upload-1"}, "less": {"store": store}},
        }));
        let expected = [
            "/input: unknown field; known are inputs, processing and outputs",
            "/inputs/Bad Name: `Bad Name` is not a slot name",
            "/inputs/a/x~1y: unknown field; known are store and key",
            "/inputs/a/store: `media` is not a store id",
            "/inputs/a/key: the object key \"/etc/passwd\" begins with a slash",
            "/inputs/b: must be an object with `store` and `key`",
            "/outputs/hidden/key: names that begin with `.telecine-` are Telecine's own",
            "/outputs/less/key: is missing",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found} does not start with {expected}");
        }
        assert_eq!(problems(&json!([])), [": must be an object with `inputs`, `processing` and `outputs`"]);
        assert_eq!(problems(&json!({"inputs": {}})), ["/outputs: is missing"]);
    }

    #[test]
    fn outputs_do_not_replace_inputs_or_each_other() {
        let store = StoreId::new(crate::time::Timestamp::from_millis(1), 1);
        let at = |key: &str| json!({"store": store, "key": key});
        let found = problems(&json!({
            "inputs": {"a": at("a.mov"), "folder": at("in/")},
            "outputs": {"one": at("a.mov"), "two": at("b.mov"), "three": at("b.mov")},
        }));
        assert_eq!(
            found,
            [
                "/inputs/folder/key: an input must be one object, not a folder",
                "/outputs/one: would replace the input `a`",
                "/outputs/two: is the same object as the output `three`",
            ]
        );
    }

    #[test]
    fn too_many_slots_are_refused() {
        let store = StoreId::new(crate::time::Timestamp::from_millis(1), 1);
        let slots = |count: usize| -> Value {
            (0..count).map(|i| (format!("s{i}"), json!({"store": store, "key": format!("k{i}")}))).collect()
        };
        assert!(Composition::from_value(&json!({"inputs": {}, "outputs": slots(MAX_SLOTS)})).is_ok());
        let found = problems(&json!({"inputs": {}, "outputs": slots(MAX_SLOTS + 1)}));
        assert_eq!(found, ["/outputs: has 33 entries, at most 32 are allowed"]);
    }
}
