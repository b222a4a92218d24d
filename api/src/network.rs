//! Networks, as the command line says them.

use spore_network::{AllowList, Policy};

/// `nat`, `none`, or what may be reached: addresses, ranges and names, each with a port or without, separated by commas.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Policy, String> {
    match text {
        "nat" => Ok(Policy::Nat),
        "none" => Ok(Policy::None),
        list => {
            let entries: Vec<String> = list.split(',').map(|entry| entry.trim().to_owned()).collect();
            AllowList::try_from(entries)
                .map(Policy::Allow)
                .map_err(|error| error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_one_of_two_words_or_a_list() {
        assert_eq!(parse("nat"), Ok(Policy::Nat));
        assert_eq!(parse("none"), Ok(Policy::None));
        let Ok(Policy::Allow(list)) = parse("198.51.100.0/24, example.com:443") else {
            panic!("a list")
        };
        assert_eq!(list.entries().len(), 2);
        assert!(parse("").is_err());
        assert!(parse("a b").is_err());
    }
}
