//! Programs that must do without AVX, since this kernel does not switch its registers.
//!
//! On a KVM that interprets guest kernels (PVM) our kernel is told `noxsave`, and switches what FXSAVE knows: x87 and
//! SSE. Programs run natively there, and on hosts that cannot intercept user mode's CPUID (AMD before `CpuidUserDis`)
//! they are told of the host's AVX, use it, and find the upper halves of other programs' registers in theirs. No
//! kernel of a guest can forbid that: such a KVM does not load a guest's XCR0. What can be done is to ask: libraries
//! that choose at run time can be told not to choose AVX. Those that cannot be told are not safe there; nor is a
//! program that is started without its environment.

use std::sync::LazyLock;

/// The variables, for the lowest place in a command's environment: whoever sets one knows why.
pub fn defaults<'a>() -> impl Iterator<Item = (&'a str, &'a str)> {
    VARIABLES.iter().map(|(name, value)| (*name, value.as_str()))
}

/// What glibc is to do without, for us too: the host says it to the first program (`KvmKind::guest_options`).
const GLIBC: &str = "GLIBC_TUNABLES";
const OTHERS: [(&str, &str); 2] = [
    // Go, package internal/cpu.
    ("GODEBUG", "cpu.avx=off,cpu.avx2=off,cpu.fma=off"),
    // OPENSSL_ia32cap(3): AVX; AVX2, AVX-512, VAES and VPCLMULQDQ.
    ("OPENSSL_ia32cap", "~0x1000000000000000:~0x600d0230020"),
];

/// Asked once, before there is anybody to wait for it: neither processor nor kernel changes in a guest's life.
static VARIABLES: LazyLock<Vec<(&str, String)>> = LazyLock::new(|| match avx_mixes() {
    true => {
        let glibc = std::env::var(GLIBC).map(|value| (GLIBC, value));
        let others = OTHERS.map(|(name, value)| (name, value.to_owned()));
        glibc.into_iter().chain(others).collect()
    }
    false => Vec::new(),
});

fn avx_mixes() -> bool {
    // As programs ask: CPUID, then XGETBV.
    let offered = is_x86_feature_detected!("avx");
    offered && std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| !switches_avx(&info))
}

/// Finds it out.
pub fn look() {
    LazyLock::force(&VARIABLES);
}

/// Whether a kernel that shows this as `/proc/cpuinfo` saves AVX registers: only XSAVE does.
fn switches_avx(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.strip_prefix("flags"))
        .all(|flags| flags.split_whitespace().any(|flag| flag == "xsave"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_xsave_does_not_switch_avx() {
        assert!(switches_avx(
            "processor\t: 0\nflags\t\t: fpu sse xsave avx xsaveopt\nbugs\t\t:\n"
        ));
        assert!(!switches_avx(
            "processor\t: 0\nflags\t\t: fpu sse xsaveopt\nbugs\t\t:\n"
        ));
        assert!(
            !switches_avx("flags : fpu xsave\n\nflags : fpu\n"),
            "each processor must"
        );
    }

    /// The host's own kernel saves whatever it offers, so nothing is taken from programs.
    #[test]
    fn programs_of_a_kernel_that_switches_all_it_offers_are_told_nothing() {
        assert_eq!(defaults().count(), 0);
    }
}
