//! Spore on real guests. One image is built for all of these tests, by the builder, and they fork it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod apart;
mod builds;
mod daemon;
mod damage;
mod death;
mod debian;
mod disk;
mod exec;
mod fork_correctness;
mod identity;
mod image;
mod kept;
mod left;
mod memory;
mod network;
mod packages;
mod programs;
mod restored;

use std::path::Path;
use std::process::ExitCode;

use spore_tests::{harness, role, tests};

fn main() -> ExitCode {
    let roles = [
        ("owner", death::owner as fn(&Path)),
        ("keeper", kept::keeper),
        ("interrupted", kept::interrupted),
        ("armed", kept::armed),
        ("networked", network::networked),
        ("packaged", packages::packaged),
        ("internet", spore_tests::wire::internet),
    ]
    .into_iter()
    .chain(fork_correctness::roles())
    .chain(daemon::roles());
    if let Some(code) = role::play(&Vec::from_iter(roles)) {
        return code;
    }
    // In the order they start: builds take longest, and the first makes the image that most others wait for.
    let mut tests = tests! {
        debian:
            packages_are_installed_and_forks_have_them_and_tls_randoms_of_their_own;
        packages:
            what_goes_wrong_with_packages_is_told_and_can_be_tried_again;
        builds:
            equal_builds_at_once_run_once_and_all_get_the_result,
            a_build_that_is_killed_or_cancelled_leaves_nothing_and_can_be_tried_again,
            a_step_that_runs_out_of_memory_names_the_field_to_raise,
            a_step_that_fills_the_disk_names_the_field_to_raise_and_can_be_tried_again,
            a_step_that_replaces_init_is_refused,
            a_finalize_whose_vm_is_killed_leaves_nothing_and_another_floor_only_finalizes,
            a_step_that_fails_is_named_with_the_end_of_its_output,
            the_second_build_is_answered_from_the_store,
            every_step_of_a_build_shows_in_a_fork;
        network:
            forks_are_themselves_on_the_network_and_reach_what_they_may;
        memory:
            growth_is_in_the_guest_and_on_the_host_and_shrinking_gives_it_back,
            a_guest_grows_while_it_is_busy,
            a_request_outside_the_limits_is_clamped_to_the_floor_or_refused,
            a_guest_moves_no_memory_by_itself;
        disk:
            a_fork_can_have_a_larger_disk_and_its_forks_and_checkpoints_have_it_too,
            a_smaller_disk_is_refused_and_one_of_the_same_size_is_there,
            what_is_deleted_in_a_guest_is_given_back_on_the_host;
        restored:
            memory_comes_back_bit_for_bit,
            three_generations_keep_memory_and_disk_and_a_clean_file_system,
            memory_and_disk_of_a_fork_are_of_the_instant_of_its_checkpoint,
            a_fork_is_restored_and_not_rebooted;
        apart:
            sixteen_forks_at_once_do_not_see_each_other,
            nothing_that_forks_do_changes_a_byte_of_the_checkpoint;
        programs:
            programs_side_by_side_copy_memory_without_a_mistake;
        identity:
            forks_made_in_the_same_second_draw_different_random_numbers,
            forks_made_in_the_same_second_have_different_ids_and_names_everywhere_they_show,
            forks_made_in_the_same_second_have_different_generation_ids_and_their_kernels_know,
            the_clock_of_a_fork_is_the_hosts_and_no_clock_goes_back,
            no_id_of_a_machine_gets_onto_its_disk,
            a_forks_environment_is_what_was_asked_and_goes_on_into_its_forks,
            an_environment_that_cannot_be_is_refused_before_anything_runs,
            hooks_run_in_order_before_anyone_can_talk_to_the_fork,
            a_hook_that_fails_destroys_the_fork_and_is_named,
            a_hook_that_takes_too_long_destroys_the_fork_and_is_named,
            a_fork_that_cannot_have_its_own_machine_id_is_destroyed;
        exec:
            standard_output_and_error_are_apart_and_the_exit_code_is_the_commands,
            a_command_that_does_not_exist_exits_with_127,
            a_signal_that_ends_a_command_is_told,
            a_time_limit_ends_the_whole_group,
            a_megabyte_of_output_arrives_whole,
            standard_input_reaches_the_command,
            what_a_request_says_goes_before_the_images_defaults,
            a_command_runs_as_who_is_asked_and_without_one_the_images_own_runs,
            a_command_can_have_a_terminal,
            a_full_disk_is_said_to_be_full_and_can_be_cleared;
        death:
            a_panic_of_the_guests_kernel_is_told_with_its_last_lines,
            a_dropped_guest_leaves_nothing,
            a_killed_vm_is_gone_and_leaves_nothing,
            a_vm_ends_with_its_owner_and_the_next_to_open_the_store_sweeps_up;
        kept:
            a_kept_guest_runs_on_without_its_owner_and_all_works_with_the_next,
            what_an_owner_was_about_when_it_was_killed_is_done_or_undone,
            a_kept_vm_that_was_killed_while_nobody_owned_it_is_told_and_swept,
            whoever_cannot_show_that_it_is_the_vm_that_is_meant_is_refused,
            a_guest_that_was_let_go_of_is_adopted_and_has_one_owner_at_a_time,
            a_guest_that_was_kept_as_a_shell_outlives_its_owner_and_a_shell_does_not;
        damage:
            a_damaged_checkpoint_is_refused_and_the_file_named,
    };
    tests.extend(daemon::tests());
    tests.extend(fork_correctness::tests());
    harness::run(
        tests,
        (
            "left::nothing_is_left_and_the_checkpoint_is_as_it_was",
            left::nothing_is_left_and_the_checkpoint_is_as_it_was,
        ),
    )
}
