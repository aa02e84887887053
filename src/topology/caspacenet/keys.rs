//! What the network calls its modules.

use crate::topology::family::FamilyKeys;

/// The second pyramid; a part of the module of the first one.
pub(super) const FPN_SUB: &str = "fpn_sub";

/// The keys of the family; the network is built with the same names.
pub(crate) const KEYS: FamilyKeys =
    FamilyKeys { roots: &[FPN_SUB], derived: &[], harmless: &[], module_alone: |_| None };
