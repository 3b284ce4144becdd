//! What QEMU says on its monitor, out of the bytes of the stream: greetings, answers, events.
//! Sans-I/O, and knows no command. Whatever the bytes are, it answers.

use super::QmpEvent;
use serde_json::Value;

/// Longest line taken from QEMU, in bytes; a longer one closes the connection. The largest reply
/// that is asked for, the block nodes of a machine with 16 disks, has some 100 KiB.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One message of QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum QmpMessage {
    /// The first one.
    Greeting {
        /// QEMU's version, major and minor; 0 for what it does not say.
        version: (u32, u32),
    },
    /// Told by itself.
    Event(QmpEvent),
    /// The answer to a call, or QEMU's error class and words.
    Answer {
        /// The call's number; none when nobody can have asked.
        id: Option<u64>,
        /// What it says.
        reply: Result<Value, (String, String)>,
    },
}

impl QmpMessage {
    /// Reads a line; none when it is no JSON.
    pub fn parse(line: &[u8]) -> Option<QmpMessage> {
        let message: Value = serde_json::from_slice(line).ok()?;
        if message.get("QMP").is_some() {
            let number = |field: &str| {
                let at = format!("/QMP/version/qemu/{field}");
                let number = message.pointer(&at).and_then(Value::as_u64);
                number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
            };
            return Some(QmpMessage::Greeting { version: (number("major"), number("minor")) });
        }
        if let Some(name) = message.get("event").and_then(Value::as_str) {
            let data = message.get("data").cloned().unwrap_or(Value::Null);
            return Some(QmpMessage::Event(QmpEvent { name: name.to_owned(), data }));
        }
        let text = |at: &str| message.pointer(at).and_then(Value::as_str).unwrap_or("").to_owned();
        let reply = match message.get("return") {
            Some(value) => Ok(value.clone()),
            None => Err((text("/error/class"), text("/error/desc"))),
        };
        Some(QmpMessage::Answer { id: message.get("id").and_then(Value::as_u64), reply })
    }
}

/// What a [`LineCutter`] has.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A message.
    Message(QmpMessage),
    /// Nothing whole yet.
    More,
    /// The stream is not QMP: it ends here.
    Broken,
}

/// Cuts a stream into messages.
#[derive(Default)]
pub struct LineCutter {
    buffer: Vec<u8>,
    searched: usize,
}

impl LineCutter {
    /// Where bytes that came are put, at the end.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// The next message of what came so far.
    pub fn cut(&mut self) -> Line {
        let fresh = &self.buffer[self.searched..];
        if let Some(found) = fresh.iter().position(|byte| *byte == b'\n') {
            let rest = self.buffer.split_off(self.searched + found + 1);
            let line = std::mem::replace(&mut self.buffer, rest);
            self.searched = 0;
            return QmpMessage::parse(&line).map_or(Line::Broken, Line::Message);
        }
        self.searched = self.buffer.len();
        if self.buffer.len() > LINE_BYTES_MAX {
            tracing::warn!(bytes = self.buffer.len(), "QEMU sent a line that is too long");
            return Line::Broken;
        }
        Line::More
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_stream_is_cut_into_its_messages_wherever_it_is_broken() {
        let stream = b"{\"QMP\":{\"version\":{\"qemu\":{\"major\":8,\"minor\":2}}}}\n\
            {\"event\":\"STOP\"}\n{\"id\":7,\"error\":{\"class\":\"C\",\"desc\":\"no\"}}\n\
            {\"return\":[1]}\n";
        for at in 0..stream.len() {
            let mut cutter = LineCutter::default();
            let mut all = Vec::new();
            for part in [&stream[..at], &stream[at..]] {
                cutter.buffer().extend_from_slice(part);
                while let Line::Message(message) = cutter.cut() {
                    all.push(message);
                }
            }
            let event = QmpEvent { name: "STOP".into(), data: Value::Null };
            let refused = Err(("C".to_owned(), "no".to_owned()));
            let expected = [
                QmpMessage::Greeting { version: (8, 2) },
                QmpMessage::Event(event),
                QmpMessage::Answer { id: Some(7), reply: refused },
                QmpMessage::Answer { id: None, reply: Ok(json!([1])) },
            ];
            assert_eq!(all, expected, "broken at {at}");
        }
    }

    #[test]
    fn what_is_no_json_and_what_never_ends_break_the_stream() {
        let mut cutter = LineCutter::default();
        cutter.buffer().extend_from_slice(b"not json\n");
        assert_eq!(cutter.cut(), Line::Broken);
        let mut cutter = LineCutter::default();
        cutter.buffer().resize(LINE_BYTES_MAX + 1, b' ');
        assert_eq!(cutter.cut(), Line::Broken);
        assert_eq!(QmpMessage::parse("[".repeat(100_000).as_bytes()), None, "it is nested deeply");
    }
}
