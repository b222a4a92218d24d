//! Killing what is left of a session.

use std::fs;

/// More passes than a chain of forks needs: each pass kills all it sees.
const MAX_PASSES: usize = 16;

/// Kills every process of a session, in whatever process group it is. The caller has killed the
/// leader's group already, so this usually finds nothing, in one pass over `/proc`.
pub fn kill(session: i32) {
    for _ in 0..MAX_PASSES {
        if !kill_once(session) {
            return;
        }
    }
}

/// Whether there was one.
fn kill_once(session: i32) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else {
        return false;
    };
    let mut found = false;
    for process in processes.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        if let Some((state, of_session)) = state_and_session(&stat)
            && of_session == session
            && !matches!(state, 'Z' | 'X')
        {
            // SAFETY: kill takes integers. The number was that of a live process of this session
            // a moment ago; numbers are handed out in a circle and not used again that soon.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            found = true;
        }
    }
    found
}

/// From `pid (name) state ppid pgrp session ...`; the name may hold anything.
fn state_and_session(stat: &str) -> Option<(char, i32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(2)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_be_called_anything() {
        assert_eq!(state_and_session("12 (a) b) (c) S 1 2 34 0 -1"), Some(('S', 34)));
        assert_eq!(state_and_session("12 (a) Z 1"), None);
        assert_eq!(state_and_session(""), None);
    }
}
