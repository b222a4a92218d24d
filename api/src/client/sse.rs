//! Server-sent events, as a client reads them (WHATWG HTML, 9.2.6).

use super::error::ClientError;

/// The longest event that is kept, in bytes.
const MAX_EVENT: usize = 1 << 20;

/// An event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The last id that was said.
    pub id: String,
    /// Its type; empty if none was said.
    pub event: String,
    /// Its lines of data.
    pub data: String,
}

/// Takes bytes as they come.
#[derive(Debug, Default)]
pub struct Parser {
    pending: Vec<u8>,
    message: Message,
    has_data: bool,
    /// The last line ended with CR: an LF right after it is of the same end.
    after_cr: bool,
}

impl Parser {
    /// The events that are complete with these bytes.
    ///
    /// # Errors
    /// When one is longer than can be.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Message>, ClientError> {
        let mut complete = Vec::new();
        for byte in bytes {
            let follows_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
            match byte {
                b'\n' if follows_cr => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.pending);
                    complete.extend(self.line(&String::from_utf8_lossy(&line)));
                }
                byte => self.pending.push(*byte),
            }
            if self.pending.len() + self.message.data.len() > MAX_EVENT {
                return Err(ClientError::Answer(format!(
                    "an event of more than {MAX_EVENT} bytes"
                )));
            }
        }
        Ok(complete)
    }

    fn line(&mut self, line: &str) -> Option<Message> {
        if line.is_empty() {
            let complete = self.message.clone();
            self.message = Message {
                id: complete.id.clone(),
                ..Message::default()
            };
            return std::mem::take(&mut self.has_data).then_some(complete);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.message.event),
            "data" => {
                if self.has_data {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
                self.has_data = true;
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.message.id),
            // A comment (no field at all), or what is not for us.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pieces: &[&str]) -> Vec<Message> {
        let mut parser = Parser::default();
        pieces
            .iter()
            .flat_map(|piece| parser.push(piece.as_bytes()).unwrap())
            .collect()
    }

    fn message(id: &str, event: &str, data: &str) -> Message {
        Message {
            id: id.to_owned(),
            event: event.to_owned(),
            data: data.to_owned(),
        }
    }

    #[test]
    fn an_event_is_complete_at_its_empty_line() {
        let text = "id: 7\nevent: draining\ndata: {\"a\":1}\n\n";
        assert_eq!(all(&[text]), [message("7", "draining", "{\"a\":1}")]);
        assert_eq!(all(&[text.trim_end()]), []);
    }

    #[test]
    fn it_does_not_matter_how_the_bytes_are_cut() {
        let text = "id: 1\r\ndata: a\r\ndata: ü\r\n\r\ndata:b\r\r: alive\n\n";
        let expected = [message("1", "", "a\nü"), message("1", "", "b")];
        assert_eq!(all(&[text]), expected);
        let mut parser = Parser::default();
        let one_by_one: Vec<_> = text
            .as_bytes()
            .chunks(1)
            .flat_map(|byte| parser.push(byte).unwrap())
            .collect();
        assert_eq!(one_by_one, expected);
    }

    #[test]
    fn comments_and_events_without_data_are_nothing() {
        assert_eq!(all(&[":\n\n", ": alive\n\n", "event: x\n\n", "retry: 3\n\n"]), []);
    }

    #[test]
    fn an_event_that_never_ends_is_refused() {
        let mut parser = Parser::default();
        let endless = vec![b'x'; MAX_EVENT + 1];
        assert!(parser.push(&endless).is_err());
        let mut parser = Parser::default();
        let line = b"data: 0123456789\n".repeat(MAX_EVENT / 8);
        assert!(parser.push(&line).is_err());
    }
}
