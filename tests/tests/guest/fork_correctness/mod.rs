//! Everything that can go wrong with a fork, as one list: `docs/fork-correctness.md` says what each test proves, and
//! which rows the other modules have.

mod bad_input;
mod checkpoint;
mod live_fork;
mod memory;
mod pool;
mod storm;
mod template;
mod vsock;
mod walk;

use std::collections::BTreeMap;
use std::path::Path;

use spore_snapshot::CheckpointId;
use spore_snapshot::checkpoint::CheckpointKind;
use spore_snapshot::store::Store;
use spore_tests::harness::Test;
use spore_tests::role::Role;
use spore_tests::sandbox::Sandbox;
use spore_vmm::guest::CheckpointPlan;
use spore_vmm::machine::Identity;
use spore_vmm::pool::Forked;

/// The tests, those first that take long.
pub fn tests() -> Vec<Test> {
    spore_tests::tests! {
        in "fork_correctness::":
        walk:
            a_random_walk_never_leaves_what_a_model_says;
        storm:
            a_hundred_forks_and_kills_leave_the_host_where_it_was;
        bad_input:
            a_guest_that_never_says_ready_is_destroyed_after_a_limit,
            a_fork_that_ends_before_it_is_ready_is_told_with_how,
            a_guest_that_hammers_its_fork_port_harms_nobody_else,
            no_forks_and_too_many_are_refused_and_the_guest_is_not_touched,
            a_deleted_checkpoint_is_refused_and_leaves_nothing,
            a_template_whose_files_changed_underneath_says_so,
            descriptors_that_run_out_in_a_fan_out_cost_the_forks_that_lack_them_only,
            an_owner_killed_in_the_middle_of_a_checkpoint_leaves_no_half_of_one;
        live_fork:
            two_processors_run_on_in_parent_and_forks,
            three_generations_keep_memory_and_disk_and_a_clean_file_system,
            the_parent_keeps_its_connections_and_all_is_of_one_instant,
            a_guest_that_nobody_comes_for_at_its_fork_port_goes_on,
            each_is_somebody_else_and_no_clock_goes_back,
            a_fork_has_nothing_of_its_parents_open,
            growth_afterwards_is_each_ones_own,
            sixteen_at_once_are_all_ready;
        checkpoint:
            a_busy_guest_stands_still_for_a_moment_only,
            a_writer_that_is_killed_or_not_wanted_any_more_harms_nothing,
            a_full_disk_harms_nothing;
        memory:
            what_a_fork_touches_is_counted_as_its_own,
            a_sibling_is_not_touched_by_a_resize_or_by_the_end_of_the_template,
            memory_is_there_as_soon_as_growth_has_been_told,
            resizes_asked_for_at_once_come_one_after_the_other,
            a_guest_killed_while_it_grows_is_told_to_be_gone,
            free_memory_comes_back_unasked;
        vsock:
            a_transfer_goes_on_through_pause_and_resume,
            a_transfer_in_flight_at_a_checkpoint_loses_nothing,
            a_transfer_in_flight_at_a_live_fork_loses_nothing;
        template:
            a_template_is_forked_again_and_again_and_never_runs,
            a_shell_waits_without_aging,
            a_fork_outlives_its_template;
        pool:
            a_shell_is_a_hit_and_its_place_is_filled_again,
            the_budget_holds_and_the_least_recently_used_goes,
            who_comes_at_once_shares_one_template,
            who_warms_at_once_makes_no_shell_too_many,
            a_deleted_checkpoint_is_forgotten,
            a_checkpoint_that_was_touched_is_looked_at_again,
            a_template_that_dies_is_loaded_again,
            shells_that_die_cost_nobody_a_fork,
    }
}

/// What this program does in processes of its own.
pub fn roles() -> Vec<Role> {
    vec![
        ("storm", storm::storm),
        ("few descriptors", bad_input::few_descriptors),
        ("checkpoints", bad_input::checkpoints),
        ("full disk", checkpoint::full_disk),
    ]
}

/// The first checkpoint there is in a store.
fn first(store: &Store) -> CheckpointId {
    store.list_checkpoints().unwrap().remove(0).0
}

/// How a sandbox is put into a store that has another of the same kernel.
fn plan(store: &Store) -> CheckpointPlan {
    CheckpointPlan {
        kind: CheckpointKind::Sandbox,
        kernel: store.manifest(&first(store)).unwrap().kernel,
        annotations: BTreeMap::new(),
    }
}

fn anybody() -> Identity {
    Identity::default()
}

/// What a pool made, with its agent.
fn sandbox(forked: Forked) -> Sandbox {
    Sandbox::new(forked.guest)
}

/// That a guest is not only there but whole: its agent answers, it runs programs, its disk can be read and written.
fn is_whole(sandbox: &mut Sandbox) {
    assert_eq!(
        sandbox.sh("cat /opt/proof && echo $((6 * 7)) >/var/whole && cat /var/whole"),
        "a file\n42"
    );
}

/// Files of a sandbox, in memory and on disk.
fn mark(sandbox: &mut Sandbox, text: &str) {
    for place in ["/run", "/var"] {
        sandbox.put(&format!("{place}/mark"), text);
    }
}

/// What [`mark`] wrote last.
fn marked(sandbox: &mut Sandbox) -> String {
    let [memory, disk] = ["/run/mark", "/var/mark"].map(|path| sandbox.get(path));
    assert_eq!(memory, disk, "memory and disk are of two instants");
    String::from_utf8(memory.unwrap_or_default()).unwrap()
}

/// That nothing uses a store and nothing of VMs is in it.
fn nothing_is_left(root: &Path) {
    spore_tests::left::soon_nothing(std::time::Duration::from_secs(30), || {
        spore_tests::left::in_store(root)
    });
}
