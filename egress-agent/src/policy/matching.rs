//! All name rules of a policy in one tree of labels, for the DNS gate: one walk from the root tells everything, so neither
//! the order of rules nor their number matters.

use super::{NamePattern, Policy, name::LABEL_MAX};
use std::collections::HashMap;

/// What the policy says of one name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NameVerdict {
    /// A deny names it; `rule` is an index into [`super::Deny::names`].
    Deny {
        /// The most specific deny that matches.
        rule: usize,
    },
    /// Allows name it, and no deny does. Indices into [`super::Allow::names`], ascending, not empty: the ports of all of them
    /// are open.
    Allow {
        /// All that match.
        rules: Vec<usize>,
        /// Labels that are the asker's own choice: those below the longest wildcard that matches. `None` where a rule names
        /// the name itself.
        free_labels: Option<usize>,
    },
    /// Nothing names it, but an allow names something below it: such a name exists for DNS (the root included).
    Ancestor,
    /// Nothing speaks of it.
    Unlisted,
}

/// Index of the root among the nodes.
const ROOT: usize = 0;

/// A tree of labels from the root of DNS downwards. Lower-case labels; bytes as on the wire, so a dot inside a label is part
/// of that label and never a border.
#[derive(Debug)]
pub struct NameTable {
    nodes: Vec<Node>,
}

#[derive(Default, Debug)]
struct Node {
    /// Lower-case label -> index of the node below.
    children: HashMap<Box<[u8]>, usize>,
    /// Rules for the name of this node.
    here: Rules,
    /// Rules for every name below it.
    below: Rules,
    /// An allow lies at or below this node.
    leads_to_allow: bool,
}

#[derive(Default, Debug)]
struct Rules {
    allow: Vec<usize>,
    deny: Option<usize>,
}

/// No DNS name has more labels (RFC 1035, 2.3.4: 255 bytes, two for each and the root).
const LABELS_MAX: usize = 127;

impl NameTable {
    /// Compiles the name rules of a policy.
    pub fn new(policy: &Policy) -> Self {
        let mut table = Self { nodes: vec![Node::default()] };
        for (index, rule) in policy.allow.names.iter().enumerate() {
            table.insert(&rule.pattern, true, |rules| rules.allow.push(index));
        }
        for (index, rule) in policy.deny.names.iter().enumerate() {
            table.insert(&rule.pattern, false, |rules| {
                rules.deny.get_or_insert(index);
            });
        }
        table
    }

    fn insert(&mut self, pattern: &NamePattern, allows: bool, add: impl Fn(&mut Rules)) {
        let mut at = ROOT;
        for label in pattern.labels().rev() {
            let next = self.nodes.len();
            let Some(node) = self.nodes.get_mut(at) else { return };
            node.leads_to_allow |= allows;
            at = *node.children.entry(label.as_bytes().into()).or_insert(next);
            if at == next {
                self.nodes.push(Node::default());
            }
        }
        let Some(node) = self.nodes.get_mut(at) else { return };
        node.leads_to_allow |= allows;
        if pattern.reach().apex() {
            add(&mut node.here);
        }
        if pattern.reach().below() {
            add(&mut node.below);
        }
    }

    /// Judges a name: labels as on the wire, leftmost first, any case, without the root.
    pub fn verdict(&self, labels: &[&[u8]]) -> NameVerdict {
        if labels.len() > LABELS_MAX {
            return NameVerdict::Unlisted;
        }
        let mut allows: Vec<usize> = Vec::new();
        let mut deny = None;
        let mut take = |rules: &Rules| {
            allows.extend_from_slice(&rules.allow);
            deny = rules.deny.or(deny);
        };
        let mut free_labels = None;
        let mut at = self.nodes.get(ROOT);
        for (depth, label) in labels.iter().rev().enumerate() {
            let Some(node) = at else { break };
            take(&node.below);
            if !node.below.allow.is_empty() {
                free_labels = Some(labels.len() - depth);
            }
            at = self.child(node, label);
        }
        if let Some(node) = at {
            take(&node.here);
            free_labels = free_labels.filter(|_| node.here.allow.is_empty());
        }
        if let Some(rule) = deny {
            return NameVerdict::Deny { rule };
        }
        if !allows.is_empty() {
            allows.sort_unstable();
            return NameVerdict::Allow { rules: allows, free_labels };
        }
        if at.is_some_and(|node| node.leads_to_allow) { NameVerdict::Ancestor } else { NameVerdict::Unlisted }
    }

    fn child(&self, node: &Node, label: &[u8]) -> Option<&Node> {
        let mut lower = [0; LABEL_MAX];
        let lower = lower.get_mut(..label.len())?;
        lower.copy_from_slice(label);
        lower.make_ascii_lowercase();
        self.nodes.get(*node.children.get(&*lower)?)
    }
}
