//! `spore checkpoint`, `spore checkpoints`.

use spore_types::{Checkpoint, CheckpointKind, CheckpointRequest, Checkpoints};

use super::{Daemon, sandbox};
use crate::cli::remote::{Checkpoint as Take, Checkpoints as Action};
use crate::client::path;
use crate::failure::Failure;
use crate::ui;

/// Takes a checkpoint and prints its id.
pub fn take(daemon: &Daemon, args: &Take) -> Result<(), Failure> {
    let request = CheckpointRequest {
        name: args.name.clone(),
        finalize_memory_mb: args.finalize,
    };
    let call = path::of_sandbox(&args.id, "checkpoints");
    let taken = daemon.client.post::<Checkpoint>(&call, &request)?;
    daemon.tell(&taken, |taken| {
        if let Some(us) = taken.paused_us.filter(|_| daemon.verbose) {
            ui::tell(format_args!("it stood still for {}", ui::took(ui::micros(us))));
        }
        ui::line(format_args!("{}", taken.id))
    })
}

/// Lists checkpoints, or removes some.
pub fn run(daemon: &Daemon, action: Option<&Action>) -> Result<(), Failure> {
    if let Some(Action::Rm { checkpoints }) = action {
        return sandbox::each(daemon, checkpoints, |name| {
            daemon.client.delete(&path::checkpoint(name))
        });
    }
    let all = daemon.client.get::<Checkpoints>("/v1/checkpoints")?;
    daemon.tell(&all, |all| {
        let rows: Vec<_> = all.checkpoints.iter().map(row).collect();
        ui::table(
            &[
                "CHECKPOINT",
                "NAME",
                "OF",
                "FLOOR",
                "MAX",
                "CPUS",
                "MEMORY",
                "DISK",
                "CREATED",
            ],
            &rows,
        )
    })
}

fn row(checkpoint: &Checkpoint) -> Vec<String> {
    vec![
        ui::short(&checkpoint.id).to_owned(),
        checkpoint.name.clone().unwrap_or_else(|| "-".to_owned()),
        match checkpoint.kind {
            CheckpointKind::Image => "image".to_owned(),
            CheckpointKind::Sandbox => "sandbox".to_owned(),
        },
        format!("{} MiB", checkpoint.floor_mb),
        format!("{} MiB", checkpoint.max_memory_mb),
        checkpoint.cpus.to_string(),
        ui::bytes(checkpoint.memory_bytes),
        format!("{} MiB", checkpoint.disk_mb),
        ui::age(checkpoint.created_at),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_a_checkpoint_is() {
        let checkpoint = Checkpoint {
            id: "00112233445566778899".to_owned(),
            name: None,
            kind: CheckpointKind::Sandbox,
            floor_mb: 1024,
            max_memory_mb: 16384,
            cpus: 1,
            memory_bytes: 34 << 20,
            disk_mb: 4096,
            created_at: 0,
            paused_us: None,
        };
        let row = row(&checkpoint);
        assert_eq!(row[..4], ["001122334455", "-", "sandbox", "1024 MiB"]);
        assert_eq!(row[4..8], ["16384 MiB", "1", "34.0 MiB", "4096 MiB"]);
    }
}
