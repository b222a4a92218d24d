//! `/v1/sandboxes/{id}/exec`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::{SinkExt, StreamExt};
use spore_protocol::{ExecEvent, OutputStream, StdinMode};
use spore_types::{ErrorReply, ExecControl, ExecReport, ExecRequest, ExecResult, ExecSignal};
use tokio::sync::{mpsc, oneshot};

use super::extract::{Body, Path};
use super::feed::{Feed, MAX_WAITING, Wish};
use super::{Shared, blocking};
use crate::engine::agent::{Cut, connect, explain};
use crate::engine::exec::{Collected, result, to_agent, tty};
use crate::engine::overdue::Overdue;
use crate::engine::sandbox::Sandbox;
use crate::error::{Error, Result};

/// How long a client may take to say what it wants to run.
const FIRST: Duration = Duration::from_secs(30);
/// Messages on their way to the client.
const PIECES: usize = 16;

/// Runs a command to its end.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/exec", operation_id = "exec", tag = "exec", params(("id" = String, Path)), request_body = ExecRequest,
    responses((status = 200, description = "It ended", body = ExecResult),
              (status = "default", description = "It was not run, or not seen to its end", body = ErrorReply)))]
pub async fn run(
    State(engine): State<Shared>,
    Path(id): Path<String>,
    Body(request): Body<ExecRequest>,
) -> Result<Json<ExecResult>> {
    let command = Collected::new(&request)?;
    let sandbox = engine.sandbox(&id)?;
    let slots = engine.clone();
    let _slot = slots.exec_slot()?;
    // Dropped with this future, and what is in it too: the command of a client that goes is killed.
    let (give_cut, _cut) = oneshot::channel::<Cut>();
    Ok(Json(
        blocking(move || command.run(&sandbox, |cut| drop(give_cut.send(cut)))).await?,
    ))
}

/// Runs a command with its input and output as they come. The first message is an `ExecRequest`; see `ExecControl`
/// and `ExecReport` for the others.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/exec", operation_id = "execStream", tag = "exec", params(("id" = String, Path)), responses(
    (status = 101, description = "A WebSocket", body = ExecReport),
    (status = "default", description = "An error", body = ErrorReply)))]
pub async fn stream(
    State(engine): State<Shared>,
    Path(id): Path<String>,
    upgrade: std::result::Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response> {
    let upgrade = upgrade.map_err(|rejection| Error::invalid(rejection.body_text()))?;
    let sandbox = engine.sandbox(&id)?;
    Ok(upgrade
        .max_message_size(MAX_WAITING)
        .on_upgrade(move |socket| async move {
            let slots = engine.clone();
            let report = match slots.exec_slot() {
                Ok(_slot) => converse(socket, sandbox).await,
                Err(error) => refuse(socket, error).await,
            };
            // A client that has gone hears nothing.
            drop(report);
        }))
}

fn text(report: &ExecReport) -> Message {
    Message::Text(serde_json::to_string(report).unwrap_or_default().into())
}

async fn refuse(mut socket: WebSocket, error: Error) -> std::result::Result<(), axum::Error> {
    socket.send(text(&ExecReport::Error(error.into_body()))).await?;
    socket.send(Message::Close(None)).await
}

async fn first(socket: &mut WebSocket) -> Result<ExecRequest> {
    let message = tokio::time::timeout(FIRST, socket.recv()).await;
    let message = message.map_err(|_| Error::invalid("the first message did not come"))?;
    match message {
        Some(Ok(Message::Text(text))) => {
            serde_json::from_str(&text).map_err(|error| Error::invalid(format!("the first message: {error}")))
        }
        _ => Err(Error::invalid("the first message must be a text: an ExecRequest")),
    }
}

fn control(text: &str) -> Result<ExecControl> {
    let wrong = |why: &dyn std::fmt::Display| Error::invalid(format!("a message: {why}"));
    let control = serde_json::from_str(text).map_err(|error| wrong(&error))?;
    match &control {
        ExecControl::Resize(size) => tty(*size).check().map_err(|error| wrong(&error))?,
        ExecControl::Signal(ExecSignal { signal }) if !(1..=64).contains(signal) => {
            return Err(wrong(&format!("signal {signal}: it must be 1 to 64")));
        }
        ExecControl::Signal(_) | ExecControl::StdinEnd => {}
    }
    Ok(control)
}

async fn converse(mut socket: WebSocket, sandbox: Arc<Sandbox>) -> std::result::Result<(), axum::Error> {
    let request = match first(&mut socket).await {
        Ok(request) => request,
        Err(error) => return refuse(socket, error).await,
    };
    let feed = Arc::new(Feed::new());
    let (said, mut saying) = mpsc::channel(PIECES);
    // Dropped at the end of this function, however that comes, and what is in it too: the command ends then.
    let (give_cut, cut) = oneshot::channel::<Cut>();
    let fed = feed.clone();
    let running = tokio::task::spawn_blocking(move || {
        let begun = |cut| drop(give_cut.send(cut));
        let interacted = interact(&sandbox, &request, begun, &fed, &said);
        fed.close();
        let report = match interacted {
            Ok(result) => ExecReport::Exit(result),
            Err(error) => ExecReport::Error(error.into_body()),
        };
        // A client that has gone hears nothing.
        let _ = said.blocking_send(text(&report));
    });
    let (mut to_client, mut from_client) = socket.split();
    let listening = async {
        while let Some(Ok(message)) = from_client.next().await {
            let wish = match message {
                Message::Binary(bytes) => Wish::Input(bytes.to_vec()),
                Message::Text(text) => match control(&text) {
                    Ok(control) => Wish::Control(control),
                    Err(error) => return Some(error),
                },
                Message::Close(_) => break,
                Message::Ping(_) | Message::Pong(_) => continue,
            };
            if !feed.put(wish).await {
                // The command takes no more; its end is still to come.
                std::future::pending::<()>().await;
            }
        }
        None
    };
    let telling = async {
        while let Some(message) = saying.recv().await {
            to_client.send(message).await?;
        }
        to_client.send(Message::Close(None)).await
    };
    let (told, wrong) = tokio::select! {
        told = telling => (told, None),
        wrong = listening => (Ok(()), wrong),
    };
    drop((cut, saying));
    // Its threads end with the connection that was cut.
    drop(running);
    if let Some(wrong) = wrong {
        to_client
            .send(text(&ExecReport::Error(wrong.into_body())))
            .await?;
        return to_client.send(Message::Close(None)).await;
    }
    told
}

/// Runs a command with what comes through `feed`, telling `said` what it writes. In a thread that may block.
fn interact(
    sandbox: &Sandbox,
    request: &ExecRequest,
    begun: impl FnOnce(Cut),
    feed: &Arc<Feed>,
    said: &mpsc::Sender<Message>,
) -> Result<ExecResult> {
    if request.stdin.is_some() {
        return Err(Error::invalid(
            "stdin: a stream sends its input in binary messages",
        ));
    }
    let mut asked = to_agent(request, None)?;
    asked.stdin = StdinMode::Piped;
    let (mut agent, cut) = connect(sandbox)?;
    begun(cut);
    let (started, mut overdue) = (Instant::now(), Overdue::of(&asked));
    overdue.arm(agent.stream())?;
    agent
        .start_exec(&asked)
        .map_err(|error| overdue.explain(explain(sandbox, error)))?;
    let stream = agent.stream().try_clone().map_err(Error::internal)?;
    let fed = feed.clone();
    let writing = std::thread::Builder::new()
        .name("exec-input".into())
        .spawn(move || fed.send_all(stream));
    writing.map_err(Error::internal)?;
    loop {
        overdue
            .arm(agent.stream())
            .map_err(|error| overdue.explain(error.into()))?;
        let event = agent
            .next_event()
            .map_err(|error| overdue.explain(explain(sandbox, error)))?;
        match event {
            ExecEvent::Output(stream, bytes) => {
                let mut message = vec![if stream == OutputStream::Stdout { 1 } else { 2 }];
                message.extend_from_slice(bytes);
                let begun = Instant::now();
                let sent = said.blocking_send(Message::Binary(message.into()));
                overdue.pass_over(begun.elapsed());
                if sent.is_err() {
                    return Err(Error::new(
                        spore_types::ErrorCode::Cancelled,
                        "the client has gone",
                    ));
                }
            }
            ExecEvent::StdinAck(count) => feed.acknowledge(count),
            ExecEvent::Exited(outcome) => return Ok(result(&outcome, started)),
        }
    }
}
