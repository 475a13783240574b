//! A composition: the JSON document that describes one piece of work, and its placeholders.
//!
//! `inputs` and `outputs` are the same for every service; `processing` is the service's own and is checked against the
//! JSON Schema kept on the engine version. A factory's composition may hold `{input.…}` placeholders in any string;
//! `inflate` replaces them for one object.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::id::SlotName;
use crate::location::{Location, ObjectKey};

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

/// Why a document cannot be inflated for an object.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{pointer}: unknown placeholder `{{{name}}}`; known are {{input.key}}, {{input.folder}}, {{input.name}}, {{input.stem}} and {{input.extension}}"
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
/// When a placeholder is not one of these.
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
            let inflated = fields.iter().map(|(name, value)| {
                let escaped = name.replace('~', "~0").replace('/', "~1");
                Ok((name.clone(), inflate_at(value, key, &format!("{pointer}/{escaped}"))?))
            });
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
        let (name, after) = rest.split_once('}').unwrap_or((rest, ""));
        result.push_str(part(name, key).ok_or_else(|| UnknownPlaceholder {
            pointer: pointer.to_owned(),
            name: name.chars().take(40).collect(),
        })?);
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
        assert!(
            inflate(&json!("{input.key"), &key).is_ok_and(|v| v == json!("a.mov"))
                || inflate(&json!("{x"), &key).is_err()
        );
    }
}
