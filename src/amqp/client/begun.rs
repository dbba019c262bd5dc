//! Which requests have begun to run here: the broker may deliver them again.
//!
//! Owns the ids of the last of them. Decides nothing.
//!
//! Rules: `_MsgIdCache` of `oslo_messaging/_drivers/amqp.py`, which keeps 16, fewer than may run at a
//! time.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

const MOST: usize = 1024;

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Begun {
    ids: HashSet<Arc<str>>,
    /// The oldest first.
    order: VecDeque<Arc<str>>,
}

impl Begun {
    pub(super) fn has(&self, unique_id: &str) -> bool {
        self.ids.contains(unique_id)
    }

    /// Notes that a request begins to run; false when it has before. One without an id always may.
    pub(super) fn claim(&mut self, unique_id: Option<&str>) -> bool {
        let Some(unique_id) = unique_id.filter(|id| !id.is_empty()) else {
            return true;
        };
        let unique_id = Arc::<str>::from(unique_id);
        if !self.ids.insert(Arc::clone(&unique_id)) {
            return false;
        }
        self.order.push_back(unique_id);
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }

    /// Takes a claim back: the request did not run.
    pub(super) fn discard(&mut self, unique_id: Option<&str>) {
        if let Some(unique_id) = unique_id
            && self.ids.remove(unique_id)
        {
            self.order.retain(|other| &**other != unique_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_begins_once_until_its_claim_is_taken_back_or_forgotten() {
        let mut begun = Begun::default();

        assert!(begun.claim(Some("1")) && !begun.claim(Some("1")) && begun.has("1"));
        begun.discard(Some("1"));
        assert!(!begun.has("1") && begun.claim(Some("1")));
        for number in 2..=MOST + 1 {
            assert!(begun.claim(Some(&number.to_string())));
        }
        assert!(!begun.has("1") && begun.has("2"));
        assert_eq!((begun.ids.len(), begun.order.len()), (MOST, MOST));
    }

    #[test]
    fn requests_without_an_id_are_not_told_apart() {
        let mut begun = Begun::default();

        assert!(begun.claim(None) && begun.claim(None));
        assert!(begun.claim(Some("")) && begun.claim(Some("")));
        begun.discard(None);
    }
}
