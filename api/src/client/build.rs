//! Building an image: a call that is answered with events.

use hyper::Method;
use serde_json::Value;
use spore_types::{BuildMessage, BuildRequest, Image};

use super::error::Refusal;
use super::sse::Message;
use super::{Client, ClientError, follow, http};

const WHAT: &str = "the build";

impl Client {
    /// Builds an image to its end; `hear` is told what comes before that. Whoever drops the future cancels the build, if
    /// nobody else wants it.
    ///
    /// # Errors
    /// As of every call. A build that failed is [`ClientError::Refused`].
    pub async fn build(
        &self,
        request: &BuildRequest,
        mut hear: impl FnMut(&BuildMessage),
    ) -> Result<Image, ClientError> {
        let payload = http::json(request)?;
        let sent = http::send(&self.socket, Method::POST, "/v1/images", http::JSON, payload);
        let response = http::good(sent.await?).await?;
        follow(response, WHAT, |message| understand(&message, &mut hear)).await
    }
}

/// The image, if this is the end.
fn understand(message: &Message, hear: &mut impl FnMut(&BuildMessage)) -> Result<Option<Image>, ClientError> {
    let not_understood = |error: &dyn std::fmt::Display| ClientError::Answer(error.to_string());
    let data: Value = serde_json::from_str(&message.data).map_err(|error| not_understood(&error))?;
    if message.event == "error" {
        // Also with a code that is newer than this client.
        return Err(match Refusal::of(0, &data["error"]) {
            Some(refusal) => ClientError::Refused(refusal),
            None => not_understood(&"an error that does not say which"),
        });
    }
    match serde_json::from_value(data) {
        Ok(BuildMessage::Image { image }) => Ok(Some(image)),
        Ok(said) => {
            hear(&said);
            Ok(None)
        }
        Err(error) if message.event == "image" => Err(not_understood(&error)),
        // There may be new ones.
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(event: &str, data: &str) -> (Result<Option<Image>, ClientError>, usize) {
        let message = Message {
            event: event.to_owned(),
            data: data.to_owned(),
            ..Message::default()
        };
        let mut heard = 0;
        let end = understand(&message, &mut |_: &BuildMessage| heard += 1);
        (end, heard)
    }

    #[test]
    fn what_comes_before_the_end_is_heard_and_what_is_newer_passed_over() {
        let (end, heard) = said("output", r#"{"type":"output","text":"x"}"#);
        assert!(matches!((end, heard), (Ok(None), 1)));
        let (end, heard) = said("prediction", r#"{"type":"prediction","seconds":3}"#);
        assert!(matches!((end, heard), (Ok(None), 0)));
    }

    #[test]
    fn a_build_that_failed_says_why_with_any_code() {
        let (end, _) = said(
            "error",
            r#"{"type":"error","error":{"code":"new","message":"no"}}"#,
        );
        assert!(matches!(end, Err(ClientError::Refused(refusal)) if refusal.code == "new"));
        for bad in [r#"{"type":"error"}"#, "{"] {
            assert!(
                matches!(said("error", bad).0, Err(ClientError::Answer(_))),
                "{bad}"
            );
        }
        let (end, _) = said("image", r#"{"type":"image","image":{}}"#);
        assert!(matches!(end, Err(ClientError::Answer(_))));
    }
}
