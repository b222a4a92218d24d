//! `spore doctor`: is this host ready, and if not, what to do.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;
use spore_builder::{Host, HostMemory};
use spore_vmm::confine::Applied;
use spore_vmm::kvm::{self, KvmKind};

use super::{cache_dir, data_dir, print_json};
use crate::cli::Global;
use crate::failure::Failure;
use crate::ui;

/// Free disk space below which it warns, in bytes.
const LOW_DISK: u64 = 5 << 30;
/// Available memory below which it warns, in MiB.
const LOW_MEMORY_MB: u64 = 2048;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    Poor,
    Bad,
}

struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
}

/// Looks at everything and prints what it found; fails when something necessary is missing.
pub fn run(global: &Global) -> Result<ExitCode, Failure> {
    let findings = look(global)?;
    let ready = findings.iter().all(|finding| finding.verdict != Verdict::Bad);
    if global.json {
        let checks: Vec<_> = findings
            .iter()
            .map(|finding| json!({"check": finding.what, "verdict": word(finding.verdict), "found": finding.found}))
            .collect();
        print_json(&json!({"ready": ready, "kvm": KvmKind::detect(), "checks": checks}))?;
    } else {
        for finding in &findings {
            ui::line(format_args!(
                "{:<5} {:<11} {}",
                word(finding.verdict),
                finding.what,
                finding.found
            ))?;
        }
        ui::line(format_args!(
            "{}",
            if ready {
                "this host is ready"
            } else {
                "this host is not ready"
            }
        ))?;
    }
    Ok(ExitCode::from(u8::from(!ready)))
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "ok",
        Verdict::Poor => "warn",
        Verdict::Bad => "FAIL",
    }
}

fn look(global: &Global) -> Result<Vec<Finding>, Failure> {
    let (data, cache) = (data_dir(global)?, cache_dir(global)?);
    let mut findings = vec![kvm_usable(), program()];
    match Host::open(&data, &cache, global.kernel.as_deref()) {
        Ok(host) => {
            findings.push(kernel(&host));
            findings.push(bases(&host));
            findings.push(disk(&data));
        }
        Err(error) => findings.push(Finding {
            what: "data",
            verdict: Verdict::Bad,
            found: error.to_string(),
        }),
    }
    findings.push(memory());
    findings.push(confinement());
    Ok(findings)
}

fn kvm_usable() -> Finding {
    let (verdict, found) = match kvm::open() {
        Ok(_) => match KvmKind::detect() {
            KvmKind::Pvm => (
                Verdict::Poor,
                "usable, but a software KVM that interprets guest kernels: all works, slowly".to_owned(),
            ),
            kind => (Verdict::Good, format!("usable, {kind}")),
        },
        Err(error) => (Verdict::Bad, error.to_string()),
    };
    Finding {
        what: "kvm",
        verdict,
        found,
    }
}

fn program() -> Finding {
    let path = spore_vmm::process::program();
    let (verdict, found) = if path.is_file() {
        (Verdict::Good, path.display().to_string())
    } else {
        (
            Verdict::Bad,
            format!(
                "{} is missing: run `make build`, or name it with SPORE_VM",
                path.display()
            ),
        )
    };
    Finding {
        what: "spore-vm",
        verdict,
        found,
    }
}

/// What holds VM processes in.
fn confinement() -> Finding {
    let (verdict, found) = match spore_vmm::process::confinement() {
        Ok(confinement) => {
            let missing: Vec<_> = confinement
                .parts()
                .iter()
                .filter_map(|(part, applied)| match applied {
                    Applied::Yes => None,
                    Applied::No { why } => Some(format!("no {part}: {why}")),
                })
                .collect();
            if missing.is_empty() {
                let parts = confinement.parts().map(|(part, _)| part);
                (Verdict::Good, parts.join(", "))
            } else {
                (Verdict::Poor, missing.join("; "))
            }
        }
        Err(error) => (Verdict::Bad, error.to_string()),
    };
    Finding {
        what: "confinement",
        verdict,
        found,
    }
}

fn kernel(host: &Host) -> Finding {
    let (verdict, found) = match std::fs::metadata(host.kernel()) {
        Ok(file) => (
            Verdict::Good,
            format!("{} ({})", host.kernel().display(), ui::bytes(file.len())),
        ),
        Err(error) => (
            Verdict::Bad,
            format!("{}: {error}: run `make kernel`", host.kernel().display()),
        ),
    };
    Finding {
        what: "kernel",
        verdict,
        found,
    }
}

fn bases(host: &Host) -> Finding {
    let names: Vec<_> = host.bases().names().iter().map(ToString::to_string).collect();
    let (verdict, found) = if names.is_empty() {
        (Verdict::Bad, "none: run `make base`".to_owned())
    } else {
        (Verdict::Good, names.join(" "))
    };
    Finding {
        what: "bases",
        verdict,
        found,
    }
}

fn disk(data: &Path) -> Finding {
    let (verdict, found) = match rustix::fs::statvfs(data) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let verdict = if free < LOW_DISK {
                Verdict::Poor
            } else {
                Verdict::Good
            };
            (verdict, format!("{} free in {}", ui::bytes(free), data.display()))
        }
        Err(error) => (Verdict::Bad, format!("{}: {error}", data.display())),
    };
    Finding {
        what: "disk",
        verdict,
        found,
    }
}

fn memory() -> Finding {
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    let (verdict, found) = match (available, HostMemory::read()) {
        (Some(kib), Ok(total)) => {
            let available = kib / 1024;
            let verdict = if available < LOW_MEMORY_MB {
                Verdict::Poor
            } else {
                Verdict::Good
            };
            (
                verdict,
                format!("{available} MiB available of {} MiB", total.total().get()),
            )
        }
        _ => (Verdict::Bad, "/proc/meminfo cannot be read".to_owned()),
    };
    Finding {
        what: "memory",
        verdict,
        found,
    }
}
