//! Who may do what: bearer tokens, roles, and one table of rights. Does not store tokens.

/// What a caller may do at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything.
    Owner,
    /// Everything but making and deleting vaults.
    Contributor,
    /// Failovers, tests and jobs of what is protected; no configuration.
    Operator,
    /// Looks at everything, changes nothing.
    Reader,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 4] = [Role::Owner, Role::Contributor, Role::Operator, Role::Reader];
}

/// What sort of right a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Look.
    Read,
    /// Run failovers and tests, steer jobs.
    Operate,
    /// Make and remove fabrics, policies, mappings and protected items.
    Configure,
    /// Make registration keys, by which hosts join.
    Admit,
    /// Make, change and delete vaults.
    ManageVaults,
}

impl Action {
    /// All actions.
    pub const ALL: [Action; 5] =
        [Action::Read, Action::Operate, Action::Configure, Action::Admit, Action::ManageVaults];
}

/// Whether `role` includes the right to `action`. The only place that decides.
pub fn authorize(role: Role, action: Action) -> bool {
    match (role, action) {
        (Role::Owner, _) => true,
        (Role::Contributor, Action::ManageVaults) => false,
        (Role::Contributor, _) => true,
        (Role::Operator, Action::Read | Action::Operate) => true,
        (Role::Operator, _) => false,
        (Role::Reader, Action::Read) => true,
        (Role::Reader, _) => false,
    }
}

/// Is somebody whose token was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who, for the log.
    pub name: String,
    /// What they may do.
    pub role: Role,
}

/// Knows the tokens.
pub trait TokenCheck: Send + Sync + 'static {
    /// Whose token it is; none when it is nobody's. Must not leak by its timing how much matched.
    fn check(&self, token: &str) -> Option<Caller>;
}

/// The one token of a config server's administrator, an [`Role::Owner`].
pub struct AdminToken {
    token: String,
}

impl AdminToken {
    /// Takes the token, without the white space around it; an empty one matches nothing.
    pub fn new(token: &str) -> Self {
        Self { token: token.trim().to_owned() }
    }
}

impl TokenCheck for AdminToken {
    fn check(&self, token: &str) -> Option<Caller> {
        let same = !self.token.is_empty()
            && aws_lc_rs::constant_time::verify_slices_are_equal(
                self.token.as_bytes(),
                token.as_bytes(),
            )
            .is_ok();
        same.then(|| Caller { name: "admin".into(), role: Role::Owner })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_exactly_the_rights_of_the_table() {
        use Action::{Admit, Configure, ManageVaults, Operate, Read};
        let table: [(Role, &[Action]); 4] = [
            (Role::Owner, &[Read, Operate, Configure, Admit, ManageVaults]),
            (Role::Contributor, &[Read, Operate, Configure, Admit]),
            (Role::Operator, &[Read, Operate]),
            (Role::Reader, &[Read]),
        ];

        assert_eq!(table.map(|(role, _)| role), Role::ALL);
        for (role, rights) in table {
            for action in Action::ALL {
                assert_eq!(
                    authorize(role, action),
                    rights.contains(&action),
                    "{role:?} {action:?}"
                );
            }
        }
    }

    #[test]
    fn only_the_whole_admin_token_is_accepted() {
        let tokens = AdminToken::new("  secret\n");

        assert_eq!(tokens.check("secret").unwrap().role, Role::Owner);
        for wrong in ["", "secre", "secrets", "Secret", " secret"] {
            assert_eq!(tokens.check(wrong), None, "{wrong:?}");
        }
        assert_eq!(AdminToken::new(" ").check(""), None);
    }
}
