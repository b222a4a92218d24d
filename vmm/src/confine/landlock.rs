//! Landlock (`Documentation/userspace-api/landlock.rst`): no file may be opened any more, whatever root it is in. What
//! is open stays usable.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr,
    RulesetStatus, Scope,
};

/// The newest version we know. An older kernel does what it can.
const KNOWN: ABI = ABI::V6;

pub(super) fn apply() -> Result<(), String> {
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(KNOWN)))
        .and_then(|rules| rules.scope(Scope::from_all(KNOWN)))
        .and_then(Ruleset::create)
        // Not a single rule: nothing is allowed.
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(|error| error.to_string())?;
    match (restricted.ruleset, restricted.landlock) {
        (RulesetStatus::FullyEnforced, _) => Ok(()),
        (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { effective_abi, .. }) => {
            Err(format!("partly: the kernel has version {effective_abi:?} of it"))
        }
        (_, status) => Err(format!("the kernel does not do it: {status:?}")),
    }
}
