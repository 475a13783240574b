//! Lines of a program's output: bounded in length, whatever bytes they hold.

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// Longest line that is kept, in bytes; the rest of a longer one is dropped.
const LINE_LIMIT: usize = 8 * 1024;

/// Reads lines ended by `\n` or `\r`.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader: BufReader::new(reader), line: Vec::new() }
    }

    /// The next line that is not empty; `None` at the end, or when the program's output cannot be read any more.
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            let available = self.reader.fill_buf().await.unwrap_or_default();
            if available.is_empty() {
                return self.take();
            }
            let end = available.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let part = &available[..end.unwrap_or(available.len())];
            let room = LINE_LIMIT - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some()
                && let Some(line) = self.take()
            {
                return Some(line);
            }
        }
    }

    fn take(&mut self) -> Option<String> {
        let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        (!line.is_empty()).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(bytes: &[u8]) -> Vec<String> {
        let mut lines = Lines::new(bytes);
        let mut all = Vec::new();
        while let Some(line) = lines.next().await {
            all.push(line);
        }
        all
    }

    #[tokio::test]
    async fn any_bytes_become_lines() {
        assert_eq!(
            lines(b"a\r\n\nframe=1\rframe=2\r\xff\xfe\nlast").await,
            ["a", "frame=1", "frame=2", "\u{fffd}\u{fffd}", "last"]
        );
        let long = vec![b'x'; 3 * LINE_LIMIT];
        let all = lines(&[long.as_slice(), b"\nnext"].concat()).await;
        assert_eq!((all[0].len(), all[1].as_str()), (LINE_LIMIT, "next"));
        assert!(lines(b"").await.is_empty());
    }
}
