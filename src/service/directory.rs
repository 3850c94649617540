//! `Directory`: where the namespaces of a user meet on this node.
