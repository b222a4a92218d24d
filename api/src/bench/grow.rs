//! `spore bench grow`: how long growing and shrinking take until the guest itself shows it.

use serde::Serialize;
use spore_builder::Host;
use spore_vmm::guest::Guest;

use super::BenchError;
use super::host::HostReport;
use super::image::Target;
use super::proc::thread_cpu_ns;
use super::worker;

/// The VM process's thread that carries out what the guest's driver asks.
const IO_THREAD: &str = "io";

/// What came of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GrowReport {
    /// Of which image.
    pub image: String,
    /// Memory of the guest at first.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// One after the other, of one guest.
    pub steps: Vec<Step>,
    /// Why the last step did not come to what was asked, if it did not.
    pub error: Option<String>,
    /// The machine.
    pub host: HostReport,
}

/// One resize.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// What it had.
    #[serde(rename = "fromMB")]
    pub from_mb: u32,
    /// What it was to have, and has: verified in the guest.
    #[serde(rename = "toMB")]
    pub to_mb: u32,
    /// MemTotal in the guest then.
    #[serde(rename = "memTotalMB")]
    pub mem_total_mb: u32,
    /// From asking to the guest's own MemTotal.
    pub verified_ms: u64,
    /// What of that the VMM ran: processor time of its I/O thread, which plugs and unplugs. The rest is the guest's.
    pub vmm_us: f64,
    /// Resident memory of the VM's process afterwards.
    pub resident_bytes: u64,
}

/// Runs the benchmark through these sizes, in MiB, and back; `say` is told what goes on.
///
/// # Errors
/// [`BenchError`]. Nothing is left either way.
pub fn run(
    host: &Host,
    target: &Target,
    sizes_mb: &[u32],
    say: &mut dyn FnMut(&str),
) -> Result<GrowReport, BenchError> {
    let mut report = GrowReport {
        image: target.image.clone(),
        memory_mb: target.memory_mb,
        steps: Vec::new(),
        error: None,
        host: HostReport::look(),
    };
    let mut guest = Guest::fork(host.store(), &target.open(host)?)?;
    let mut agent = worker::connect(&mut guest)?;
    let mut from_mb = target.memory_mb;
    for to_mb in there_and_back(from_mb, sizes_mb) {
        say(&format!("from {from_mb} to {to_mb} MiB"));
        let before = thread_cpu_ns(guest.pid(), IO_THREAD);
        let granted = match guest.resize(&mut agent, to_mb) {
            Ok(granted) => granted,
            Err(error) => {
                report.error = Some(format!("from {from_mb} to {to_mb} MiB: {error}"));
                break;
            }
        };
        let ran = thread_cpu_ns(guest.pid(), IO_THREAD).saturating_sub(before);
        report.steps.push(Step {
            from_mb,
            to_mb: granted.granted_mb,
            mem_total_mb: granted.mem_total_mb,
            verified_ms: granted.took_ms,
            vmm_us: ran as f64 / 1e3,
            resident_bytes: guest.resident_bytes(),
        });
        from_mb = granted.granted_mb;
    }
    report.host = report.host.after();
    Ok(report)
}

/// Up through the sizes above `floor`, and down again to it.
fn there_and_back(floor: u32, sizes: &[u32]) -> Vec<u32> {
    let mut way: Vec<_> = sizes.iter().copied().filter(|&size| size > floor).collect();
    way.sort_unstable();
    way.dedup();
    let back: Vec<_> = way.iter().rev().skip(1).copied().collect();
    if !way.is_empty() {
        way.extend(back);
        way.push(floor);
    }
    way
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_is_the_way_there() {
        assert_eq!(
            there_and_back(1024, &[1024, 2048, 8192, 4096]),
            [2048, 4096, 8192, 4096, 2048, 1024]
        );
        assert_eq!(there_and_back(1024, &[1536]), [1536, 1024]);
        assert!(there_and_back(1024, &[512, 1024]).is_empty());
    }
}
