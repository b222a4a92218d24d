//! The machine a benchmark ran on: a number without it says nothing.

use std::fs;

use serde::Serialize;
use spore_vmm::kvm::KvmKind;

/// The machine, and how busy it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostReport {
    /// Release of its kernel.
    pub kernel: String,
    /// Kind of KVM.
    pub kvm: KvmKind,
    /// Processors this process may run on.
    pub cpus: usize,
    /// How the first processor's frequency is chosen; `none` where it cannot be.
    pub governor: String,
    /// When huge pages are used: `always`, `madvise` or `never`.
    pub thp: String,
    /// Load before: averages over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// The same afterwards.
    pub load_after: [f64; 3],
}

impl HostReport {
    /// Looks, before anything is measured.
    pub fn look() -> Self {
        let governor = line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        Self {
            kernel: line("/proc/sys/kernel/osrelease"),
            kvm: KvmKind::detect(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            governor: if governor.is_empty() {
                "none".to_owned()
            } else {
                governor
            },
            thp: chosen(&line("/sys/kernel/mm/transparent_hugepage/enabled")),
            load: load(),
            load_after: [0.0; 3],
        }
    }

    /// Looks again, when everything is measured.
    pub fn after(mut self) -> Self {
        self.load_after = load();
        self
    }
}

fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// What is in brackets in a list of choices; the list, if nothing is.
fn chosen(choices: &str) -> String {
    let inside = choices.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(choices, |(choice, _)| choice).to_owned()
}

fn load() -> [f64; 3] {
    let text = line("/proc/loadavg");
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
    std::array::from_fn(|_| numbers.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_that_is_made_is_found_among_those_that_are_not() {
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(chosen(""), "");
    }

    #[test]
    fn this_machine_can_be_described() {
        let host = HostReport::look().after();
        assert!(!host.kernel.is_empty());
        let json = serde_json::to_value(&host).unwrap();
        for name in ["kernel", "kvm", "cpus", "governor", "thp", "load", "loadAfter"] {
            assert!(json.get(name).is_some(), "{name}");
        }
    }
}
