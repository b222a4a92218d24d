//! `Idempotency-Key`: a call that makes something, made once however often it is sent.
//!
//! A call with a key goes on when its client hangs up: that is what lets the client ask again and be told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use spore_snapshot::Digest;
use spore_types::{ErrorCode, ErrorReply};
use tokio::sync::watch;

use super::extract::body;
use super::reply;
use crate::error::{Error, Result};

/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(3600);
/// The longest key, in characters.
const MAX_KEY: usize = 128;
/// The most keys that are kept.
const MAX_KEYS: usize = 100_000;
/// The most bytes of answers: a sandbox that was made is one or two thousand.
const MAX_KEPT: usize = 256 << 20;
/// The longest answer: 64 sandboxes, each with two full outputs, are never near it.
const MAX_ANSWER: usize = 256 << 20;
/// The longest answer that is kept: of a longer one is kept that there was one.
const MAX_KEPT_ANSWER: usize = 1 << 20;

/// An answer, once there is one; `None` inside: the call failed so that it may be tried again.
type Answer = Option<Option<(StatusCode, Bytes)>>;

struct Entry {
    call: String,
    /// Of the body: that may have a mebibyte.
    body: Digest,
    at: Instant,
    answer: watch::Receiver<Answer>,
    /// Of the answer, once there is one.
    bytes: usize,
}

impl Entry {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < KEPT
    }
}

#[derive(Default)]
struct Kept {
    entries: BTreeMap<String, Entry>,
    /// Of all answers.
    bytes: usize,
}

impl Kept {
    fn is_full(&self) -> bool {
        self.entries.len() >= MAX_KEYS || self.bytes >= MAX_KEPT
    }

    fn remove(&mut self, key: &str) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.bytes;
        }
    }

    fn sweep(&mut self) {
        self.entries.retain(|_, entry| entry.is_fresh());
        self.bytes = self.entries.values().map(|entry| entry.bytes).sum();
    }
}

/// Answers by key.
#[derive(Default)]
pub struct Replies(Mutex<Kept>);

enum Turn {
    First(watch::Sender<Answer>),
    Later(watch::Receiver<Answer>),
}

impl Replies {
    fn turn(&self, key: &str, call: String, body: &Bytes) -> Result<Turn> {
        let mut kept = self.lock();
        if let Some(entry) = kept.entries.get(key).filter(|entry| entry.is_fresh()) {
            if entry.call != call || entry.body != Digest::of(body) {
                let message = "Idempotency-Key: this key was used with another request";
                return Err(Error::new(ErrorCode::Conflict, message));
            }
            return Ok(Turn::Later(entry.answer.clone()));
        }
        kept.remove(key);
        if kept.is_full() {
            kept.sweep();
        }
        if kept.is_full() {
            let message = format!(
                "{} idempotency keys are in use, with {} MiB of answers; each for an hour",
                kept.entries.len(),
                kept.bytes >> 20
            );
            return Err(Error::new(ErrorCode::Busy, message));
        }
        let (done, answer) = watch::channel(None);
        let entry = Entry {
            call,
            body: Digest::of(body),
            at: Instant::now(),
            answer,
            bytes: 0,
        };
        kept.entries.insert(key.to_owned(), entry);
        Ok(Turn::First(done))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to a key has so many bytes.
    fn answered(&self, key: &str, bytes: usize) {
        let kept = &mut *self.lock();
        if let Some(entry) = kept.entries.get_mut(key) {
            kept.bytes -= std::mem::replace(&mut entry.bytes, bytes);
            kept.bytes += bytes;
        }
    }

    fn forget(&self, key: &str) {
        self.lock().remove(key);
    }
}

/// The key of a request, if it has one.
fn key(request: &Request) -> Result<Option<String>> {
    let Some(value) = request.headers().get("idempotency-key") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let fits = (1..=MAX_KEY).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !fits {
        return Err(Error::invalid("Idempotency-Key: 1 to 128 printable characters"));
    }
    Ok(Some(text.to_owned()))
}

/// Makes a call once.
pub async fn once(State(replies): State<Arc<Replies>>, request: Request, next: Next) -> Response {
    match answer(replies, request, next).await {
        Ok(response) => response,
        Err(error) => reply::error(error),
    }
}

async fn answer(replies: Arc<Replies>, request: Request, next: Next) -> Result<Response> {
    let Some(key) = key(&request)? else {
        return Ok(next.run(request).await);
    };
    let (parts, rest) = request.into_parts();
    let call = format!("{} {}", parts.method, parts.uri);
    let body = body(Request::from_parts(parts.clone(), rest), &()).await?;
    loop {
        match replies.turn(&key, call.clone(), &body)? {
            Turn::First(done) => {
                let request = Request::from_parts(parts, Body::from(body));
                let (replies, key) = (replies.clone(), key.clone());
                // Not ended by whoever hangs up.
                let running = tokio::spawn(async move {
                    let mut entry = Unanswered {
                        replies,
                        key: Some(key),
                    };
                    let response = next.run(request).await;
                    let (head, body) = response.into_parts();
                    let bytes = axum::body::to_bytes(body, MAX_ANSWER).await.unwrap_or_default();
                    if lasts(head.status)
                        && let Some(key) = entry.key.take()
                    {
                        let kept = match bytes.len() <= MAX_KEPT_ANSWER {
                            true => (head.status, bytes.clone()),
                            false => not_kept(bytes.len()),
                        };
                        entry.replies.answered(&key, kept.1.len());
                        done.send_replace(Some(Some(kept)));
                    }
                    Response::from_parts(head, Body::from(bytes))
                });
                return running.await.map_err(Error::internal);
            }
            Turn::Later(mut answer) => {
                match answer.wait_for(Option::is_some).await.map(|seen| seen.clone()) {
                    Ok(Some(Some((status, bytes)))) => {
                        let json = [
                            ("content-type", "application/json"),
                            ("idempotency-replayed", "true"),
                        ];
                        return Ok((status, json, bytes).into_response());
                    }
                    // It came to nothing that lasts: now it is our turn.
                    _ => continue,
                }
            }
        }
    }
}

/// What is answered again instead of so many bytes.
fn not_kept(bytes: usize) -> (StatusCode, Bytes) {
    let message =
        format!("this key was answered, with {bytes} bytes; no more than {MAX_KEPT_ANSWER} are kept");
    let error = Error::new(ErrorCode::Conflict, message).into_body();
    let text = serde_json::to_vec(&ErrorReply { error }).unwrap_or_default();
    (StatusCode::CONFLICT, text.into())
}

/// Whether it would be the same answer in a moment: not when the host is at fault, has no room, or is busy.
fn lasts(status: StatusCode) -> bool {
    !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS
}

/// A call without an answer that lasts, whatever ended it: its key is free again.
struct Unanswered {
    replies: Arc<Replies>,
    /// Absent once it is answered.
    key: Option<String>,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.replies.forget(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_bounded_all_together_and_old_ones_make_room() {
        let replies = Replies::default();
        let turn = |key: &str| replies.turn(key, "POST /".to_owned(), &Bytes::new());
        for key in ["a", "b"] {
            assert!(matches!(turn(key), Ok(Turn::First(_))));
            replies.answered(key, MAX_KEPT / 2);
        }
        assert_eq!(turn("c").err().unwrap().code(), ErrorCode::Busy);
        assert!(
            matches!(turn("a"), Ok(Turn::Later(_))),
            "what is kept is answered"
        );
        replies.lock().entries.get_mut("a").unwrap().at -= KEPT;
        assert!(matches!(turn("c"), Ok(Turn::First(_))));
        replies.forget("b");
        assert_eq!(replies.lock().bytes, 0);
        replies.answered("b", 7);
        assert_eq!(replies.lock().bytes, 0, "of no key");
    }

    #[test]
    fn what_may_be_answered_otherwise_in_a_moment_is_not_kept() {
        for (code, kept) in [
            (201, true),
            (400, true),
            (409, true),
            (429, false),
            (500, false),
            (503, false),
        ] {
            assert_eq!(lasts(StatusCode::from_u16(code).unwrap()), kept, "{code}");
        }
    }
}
