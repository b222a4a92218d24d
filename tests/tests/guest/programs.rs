//! What programs in one guest may rely on, however KVM runs its kernel.

use spore_tests::copies;

use crate::image::image;

/// A kernel that does not switch all registers that programs use mixes them: see `agent/src/exec/registers.rs`.
pub fn programs_side_by_side_copy_memory_without_a_mistake() {
    let mut fork = image().fork();
    fork.put_program("/run/copies", copies::PROGRAM);
    let said = fork.sh("pids=; bad=0; \
                        for i in 1 2 3; do /run/copies $i & pids=\"$pids $!\"; done; \
                        for pid in $pids; do wait $pid || bad=1; done; exit $bad");
    assert_eq!(said, "right\nright\nright");
}
