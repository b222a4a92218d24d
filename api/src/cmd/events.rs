//! `spore events`.

use serde_json::Value;

use super::Daemon;
use crate::client::sse::Message;
use crate::failure::Failure;
use crate::ui;

/// Prints what happens, a line an event, until the daemon goes.
pub fn follow(daemon: &Daemon, after: Option<u64>) -> Result<(), Failure> {
    daemon.client.events(after, |message| {
        if daemon.json {
            ui::line(format_args!("{}", message.data))
        } else {
            ui::line(format_args!("{}", line(&message)))
        }
    })
}

/// The id, when, what, and all that belongs to it. Of events of a newer daemon, too.
fn line(message: &Message) -> String {
    let data: Value = serde_json::from_str(&message.data).unwrap_or_default();
    let when = data["timeMs"].as_u64().map_or_else(|| "-".to_owned(), ui::utc);
    let mut line = format!("{} {when} {}", message.id, message.event);
    for (name, value) in data.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "id" | "timeMs" | "type") {
            match value.as_str() {
                Some(text) if !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c == '"') => {
                    line.push_str(&format!(" {name}={text}"));
                }
                _ => line.push_str(&format!(" {name}={value}")),
            }
        }
    }
    ui::harmless(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let message = Message {
            id: "7".to_owned(),
            event: "sandboxEnded".to_owned(),
            data: r#"{"id":7,"timeMs":1000,"type":"sandboxEnded","sandbox":"sb1","cause":"killed by \u001b[2J 9"}"#
                .to_owned(),
        };
        assert_eq!(
            line(&message),
            "7 1970-01-01T00:00:01.000Z sandboxEnded cause=\"killed by \\u001b[2J 9\" sandbox=sb1"
        );
    }

    #[test]
    fn an_event_that_is_not_understood_is_still_a_line() {
        let message = Message {
            event: "x".to_owned(),
            data: "nonsense".to_owned(),
            ..Message::default()
        };
        assert_eq!(line(&message), " - x");
    }
}
