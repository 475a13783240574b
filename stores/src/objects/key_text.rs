//! Keys that the S3 client's own path type cannot hold, written so that it can.
//!
//! `object_store::path::Path` refuses control characters, drops a leading or trailing slash, and fails a whole listing
//! over one such key; its encoding constructor maps `%` and others to different keys. So the few keys it cannot hold are
//! spelled with an introducer, `U+10FFFD` (a private-use character no real key has), and two hexadecimal digits. The
//! connector turns the spelling back into the true bytes just before a request is signed and sent, and spells the keys of
//! every listing. All other keys, which is nearly all of them, are the same text on both sides.
//!
//! Invariant: `unspell(spell(key)) == key`, and `Path::parse(spell(key))` never fails and never changes the text.

use std::borrow::Cow;
use std::fmt::Write;

use object_store::path::Path;

/// Introduces two hexadecimal digits.
pub(super) const MARK: char = '\u{10FFFD}';
/// The introducer as it appears in a URL.
pub(super) const MARK_ENCODED: &str = "%F4%8F%BF%BD";
/// What the introducer itself is spelled as, behind an introducer.
const MARK_ITSELF: &str = "ff";

/// The client's path for a whole key (the store's prefix included).
pub(super) fn path_of(key: &str) -> Path {
    Path::parse(spell(key)).expect("a spelled key has no character that the path type refuses")
}

/// Spells a key; see above.
pub(super) fn spell(key: &str) -> String {
    let mut spelled = String::with_capacity(key.len() + 8);
    let last = key.len();
    for (segment, start) in segments(key) {
        let end = start + segment.len();
        if start > 0 {
            // A slash is kept only between two segments that are not empty.
            let between =
                !segment.is_empty() && !key[..start - 1].is_empty() && !key[..start - 1].ends_with('/');
            push(&mut spelled, '/', !between);
        }
        let relative = matches!(segment, "." | "..");
        for (offset, letter) in segment.char_indices() {
            let edge = start + offset == 0 || start + offset + letter.len_utf8() == last;
            let trimmed = edge && letter.is_whitespace() && letter.is_ascii();
            push(&mut spelled, letter, relative || trimmed || letter.is_ascii_control());
        }
        debug_assert!(end <= last);
    }
    spelled
}

/// Spells part of a key, such as the prefix of a listing, where position decides nothing.
pub(super) fn spell_part(part: &str) -> String {
    let mut spelled = String::with_capacity(part.len());
    part.chars().for_each(|letter| push(&mut spelled, letter, letter.is_ascii_control()));
    spelled
}

fn segments(key: &str) -> impl Iterator<Item = (&str, usize)> {
    let mut start = 0;
    key.split('/').map(move |segment| {
        let at = start;
        start += segment.len() + 1;
        (segment, at)
    })
}

fn push(spelled: &mut String, letter: char, escape: bool) {
    if letter == MARK {
        spelled.push(MARK);
        spelled.push_str(MARK_ITSELF);
    } else if escape {
        write!(spelled, "{MARK}{:02x}", u32::from(letter)).expect("a String takes everything");
    } else {
        spelled.push(letter);
    }
}

/// The true key of a spelled one. A spelling that `spell` never makes is kept as it is.
pub(super) fn unspell(spelled: &str) -> Cow<'_, str> {
    if !spelled.contains(MARK) {
        return Cow::Borrowed(spelled);
    }
    let mut parts = spelled.split(MARK);
    let mut key = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..2).and_then(letter_of) {
            Some(letter) => {
                key.push(letter);
                key.push_str(&part[2..]);
            }
            None => {
                key.push(MARK);
                key.push_str(part);
            }
        }
    }
    Cow::Owned(key)
}

/// The same inside a URL's path or query, where everything is percent-encoded; slashes become `slash`.
pub(super) fn unspell_encoded(encoded: &str, slash: &str) -> String {
    let mut parts = encoded.split(MARK_ENCODED);
    let mut key = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..2).and_then(letter_of) {
            Some(letter) => {
                match letter {
                    MARK => key.push_str(MARK_ENCODED),
                    '/' => key.push_str(slash),
                    '.' => key.push('.'),
                    other => write!(key, "%{:02X}", u32::from(other)).expect("a String takes everything"),
                }
                key.push_str(&part[2..]);
            }
            None => {
                key.push_str(MARK_ENCODED);
                key.push_str(part);
            }
        }
    }
    key
}

fn letter_of(digits: &str) -> Option<char> {
    if digits == MARK_ITSELF {
        return Some(MARK);
    }
    let value = u8::from_str_radix(digits, 16).ok().filter(u8::is_ascii)?;
    (digits.bytes().all(|digit| digit.is_ascii_hexdigit())).then_some(char::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: [&str; 22] = [
        "plain.mov",
        "in/day 1/clip.final.mov",
        "new\nline",
        "\r\n\t\u{1}\u{7f}",
        "100%2Fetc",
        "%00%",
        "quote\"'`",
        " leading and trailing ",
        "a/ b /c ",
        "folder/",
        "a//b",
        "/rooted",
        "//",
        "/",
        "a/./b/../c",
        ".",
        "..",
        "é漢\u{10FFFD}",
        "\u{10FFFD}0a",
        "#?&+=;:@<>[]{}|\\^~*",
        "..hidden/...",
        "\u{2028}\u{85}",
    ];

    #[test]
    fn every_key_survives_the_clients_path() {
        for key in HOSTILE {
            let path = path_of(key);
            assert_eq!(path.as_ref(), spell(key), "{key:?}");
            assert_eq!(unspell(path.as_ref()), key);
        }
    }

    #[test]
    fn ordinary_keys_are_the_same_text() {
        for key in ["plain.mov", "in/day 1/100%2F #1 (é).mov", "a+b=c&d", "%0A"] {
            assert_eq!(spell(key), key);
        }
    }

    #[test]
    fn a_spelled_url_becomes_the_true_one() {
        assert_eq!(unspell_encoded("/b/a%F4%8F%BF%BD0ab", "/"), "/b/a%0Ab");
        assert_eq!(unspell_encoded("/b/a%F4%8F%BF%BDffb%F4%8F%BF%BD2f", "/"), "/b/a%F4%8F%BF%BDb/");
        assert_eq!(unspell_encoded("/b/%F4%8F%BF%BD", "/"), "/b/%F4%8F%BF%BD");
        assert_eq!(unspell_encoded("/b/%F4%8F%BF%BD+f", "/"), "/b/%F4%8F%BF%BD+f");
    }
}
