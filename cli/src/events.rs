//! Server-sent events, read from an answer as they come.

use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::Response;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its name; `message` when it has none.
    pub name: String,
    /// Where to resume after it.
    pub id: Option<String>,
    /// Its data, lines joined by line feeds.
    pub data: String,
}

/// The events of one answer.
pub(crate) struct Events {
    chunks: BoxStream<'static, Vec<u8>>,
    buffer: Vec<u8>,
}

/// An event longer than this is not one of ours.
const MAX_EVENT_BYTES: usize = 1024 * 1024;

impl Events {
    /// The events of `response`; they end when it ends or breaks.
    pub(crate) fn of(response: Response) -> Self {
        let whole = response.bytes_stream().take_while(|chunk| std::future::ready(chunk.is_ok()));
        Self {
            chunks: whole.filter_map(|chunk| std::future::ready(chunk.ok().map(Vec::from))).boxed(),
            buffer: Vec::new(),
        }
    }

    /// The next event; `None` at the end. Comments (heartbeats) are passed over.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(block) = take_block(&mut self.buffer) {
                if let Some(event) = parse(&block) {
                    return Some(event);
                }
            }
            if self.buffer.len() > MAX_EVENT_BYTES {
                return None;
            }
            self.buffer.extend(self.chunks.next().await?);
        }
    }
}

/// Cuts off what stands before the first empty line.
fn take_block(buffer: &mut Vec<u8>) -> Option<String> {
    let end = buffer.windows(2).position(|pair| pair == b"\n\n")?;
    let block: Vec<u8> = buffer.drain(..end + 2).collect();
    Some(String::from_utf8_lossy(&block[..end]).into_owned())
}

fn parse(block: &str) -> Option<Event> {
    let mut event = Event { name: "message".to_owned(), ..Event::default() };
    let mut data: Vec<&str> = Vec::new();
    for line in block.lines().filter(|line| !line.starts_with(':')) {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut event.name),
            "id" => event.id = Some(value.to_owned()),
            "data" => data.push(value),
            _ => {}
        }
    }
    event.data = data.join("\n");
    (!event.data.is_empty()).then_some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_at_empty_lines_and_heartbeats_passed_over() {
        let mut buffer =
            b": hello\n\nevent: job.state\nid: 3\ndata: {\"a\":\ndata: 1}\n\nevent: half".to_vec();
        assert_eq!(parse(&take_block(&mut buffer).unwrap()), None);
        let event = parse(&take_block(&mut buffer).unwrap()).unwrap();
        assert_eq!(
            event,
            Event { name: "job.state".into(), id: Some("3".into()), data: "{\"a\":\n1}".into() }
        );
        assert_eq!(take_block(&mut buffer), None);
        assert_eq!(buffer, b"event: half");
    }
}
