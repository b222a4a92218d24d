//! Time limits of commands, kept also where the guest does not keep them: its agent ends a command at its limit, and
//! this ends the wait for an agent that does not.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use spore_types::ErrorCode;

use crate::error::Error;

/// How long after its limit a command's end may be told: one that is killed is so at once, but guests can be slow.
const GRACE: Duration = Duration::from_secs(30);

/// When a command's end is overdue, if it has a limit.
#[derive(Clone, Copy, Debug)]
pub struct Overdue(Option<Instant>);

impl Overdue {
    /// Of a command that begins now.
    pub fn of(request: &spore_protocol::ExecRequest) -> Self {
        let limit = request.time_limit_ms.map(Duration::from_millis);
        Self(limit.and_then(|limit| Instant::now().checked_add(limit + GRACE)))
    }

    /// Lets the agent's connection be read and written until then and no longer.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] if it is overdue; what the connection says.
    pub fn arm(&self, stream: &UnixStream) -> io::Result<()> {
        let Some(at) = self.0 else { return Ok(()) };
        match at.checked_duration_since(Instant::now()) {
            // No time at all would be no limit (setsockopt(2)).
            Some(left) if !left.is_zero() => stream
                .set_read_timeout(Some(left))
                .and_then(|()| stream.set_write_timeout(Some(left))),
            _ => Err(ErrorKind::TimedOut.into()),
        }
    }

    /// What took so long was not the guest: whoever reads what the command says took their time.
    pub fn pass_over(&mut self, time: Duration) {
        self.0 = self.0.and_then(|at| at.checked_add(time));
    }

    /// The error that an error of the conversation is.
    pub fn explain(&self, otherwise: Error) -> Error {
        match self.0.is_some_and(|at| at <= Instant::now()) {
            true => Error::new(
                ErrorCode::TimedOut,
                "the command is long over its time limit, and its guest does not end it",
            ),
            false => otherwise,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_guest_that_says_nothing_is_waited_for_until_then_only() {
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        let soon = Overdue(Some(Instant::now() + Duration::from_millis(20)));
        soon.arm(&ours).unwrap();
        let kind = ours.read(&mut [0]).unwrap_err().kind();
        assert!(
            [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&kind),
            "{kind:?}"
        );
        // And one that never stops talking is not asked again.
        assert_eq!(soon.arm(&ours).unwrap_err().kind(), ErrorKind::TimedOut);
        let told = soon.explain(Error::invalid("cut"));
        assert_eq!(told.code(), ErrorCode::TimedOut);
    }

    #[test]
    fn what_a_client_takes_does_not_count() {
        let mut late = Overdue(Some(Instant::now()));
        late.pass_over(Duration::from_secs(60));
        late.arm(&UnixStream::pair().unwrap().0).unwrap();
    }

    #[test]
    fn without_a_limit_nothing_is_overdue() {
        let none = Overdue::of(&spore_protocol::ExecRequest::default());
        none.arm(&UnixStream::pair().unwrap().0).unwrap();
        assert_eq!(
            none.explain(Error::invalid("cut")).code(),
            ErrorCode::InvalidRequest
        );
        let hour = spore_protocol::ExecRequest {
            time_limit_ms: Some(3_600_000),
            ..spore_protocol::ExecRequest::default()
        };
        let hour = Overdue::of(&hour);
        assert_eq!(
            hour.explain(Error::invalid("cut")).code(),
            ErrorCode::InvalidRequest
        );
    }
}
