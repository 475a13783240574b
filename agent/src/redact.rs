//! Takes secrets out of a stream of bytes before anybody sees them, also where a secret is split over two reads.

const MASK: &[u8] = b"[redacted]";
/// Shorter secrets would take ordinary words out of the log.
const SHORTEST: usize = 6;

/// Replaces known secrets in what passes through it. It holds back at most the length of its longest secret.
#[derive(Default)]
pub struct Redactor {
    secrets: Vec<Vec<u8>>,
    held: Vec<u8>,
}

impl Redactor {
    /// Learns a secret; texts under 6 bytes are ignored.
    pub fn learn(&mut self, secret: &str) {
        if secret.len() >= SHORTEST && !self.secrets.iter().any(|known| known == secret.as_bytes()) {
            self.secrets.push(secret.as_bytes().to_vec());
            self.secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        }
    }

    /// Passes `data` on, but for an end that may be the beginning of a secret.
    pub fn push(&mut self, data: &[u8]) -> Vec<u8> {
        if self.secrets.is_empty() && self.held.is_empty() {
            return data.to_vec();
        }
        self.held.extend_from_slice(data);
        let mut clean = Vec::with_capacity(self.held.len());
        let mut rest = self.held.as_slice();
        while !rest.is_empty() {
            if let Some(secret) = self.secrets.iter().find(|secret| rest.starts_with(secret)) {
                clean.extend_from_slice(MASK);
                rest = &rest[secret.len()..];
            } else if self.secrets.iter().any(|secret| secret.starts_with(rest)) {
                break;
            } else {
                clean.push(rest[0]);
                rest = &rest[1..];
            }
        }
        self.held = rest.to_vec();
        clean
    }

    /// Passes on what was held back: nothing more will come.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// `text` without secrets.
    pub fn redact(&self, text: &str) -> String {
        let mut whole = Self { secrets: self.secrets.clone(), held: Vec::new() };
        let mut clean = whole.push(text.as_bytes());
        clean.extend(whole.finish());
        String::from_utf8_lossy(&clean).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_are_masked_however_they_are_split() {
        let text = b"key=AKIA-SECRET-1 and AKIA-SECRET-1AKIA-SECRET AKIA-SEC";
        for cut in 0..text.len() {
            let mut redactor = Redactor::default();
            redactor.learn("AKIA-SECRET-1");
            redactor.learn("short");
            let mut clean = redactor.push(&text[..cut]);
            clean.extend(redactor.push(&text[cut..]));
            clean.extend(redactor.finish());
            assert_eq!(
                String::from_utf8(clean).unwrap(),
                "key=[redacted] and [redacted]AKIA-SECRET AKIA-SEC"
            );
        }
    }

    #[test]
    fn texts_are_masked_at_once() {
        let mut redactor = Redactor::default();
        redactor.learn("0123456789");
        assert_eq!(redactor.redact("denied for 0123456789!"), "denied for [redacted]!");
    }

    proptest! {
        #[test]
        fn other_bytes_pass_unchanged(data in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
            let mut redactor = Redactor::default();
            redactor.learn("\u{1}\u{2}\u{3}\u{4}\u{5}\u{6}\u{7}never");
            let cut = cut.min(data.len());
            let mut clean = redactor.push(&data[..cut]);
            clean.extend(redactor.push(&data[cut..]));
            clean.extend(redactor.finish());
            prop_assert_eq!(clean, data);
        }
    }
}
