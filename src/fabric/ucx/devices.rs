//! Which devices UCX may use: the network interfaces on which this node listens, and adapters for RDMA.

use std::fs;
use std::path::Path;

use crate::launch::{self, Job};

/// Names as in `UCX_NET_DEVICES`: what listens through UCX listens nowhere else.
///
/// # Cost
/// As [`launch::interfaces`].
pub(super) fn of_this_node() -> Vec<String> {
    let interfaces = Job::discover().and_then(|job| launch::interfaces(&job)).map(|(interfaces, _)| interfaces);
    let names = interfaces.unwrap_or_default().into_iter().map(|interface| interface.name);
    names.chain(adapters(Path::new(ADAPTERS))).collect()
}

/// Whether this node has an adapter that is up.
pub(super) fn has_adapter() -> bool {
    !adapters(Path::new(ADAPTERS)).is_empty()
}

/// Where the kernel lists them.
const ADAPTERS: &str = "/sys/class/infiniband";

/// Ports of adapters that are up, as `mlx5_0:1`.
fn adapters(class: &Path) -> Vec<String> {
    let names = |path: &Path| -> Vec<String> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    };
    let mut ports = Vec::new();
    for adapter in names(class) {
        let directory = class.join(&adapter).join("ports");
        for port in names(&directory) {
            // "4: ACTIVE"
            let state = fs::read_to_string(directory.join(&port).join("state")).unwrap_or_default();
            if state.contains("ACTIVE") {
                ports.push(format!("{adapter}:{port}"));
            }
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_those_that_are_up() {
        let class = tempfile::tempdir().unwrap();
        for (adapter, port, state) in
            [("mlx5_1", "1", "4: ACTIVE\n"), ("mlx5_0", "1", "1: DOWN\n"), ("mlx5_0", "2", "4: ACTIVE\n")]
        {
            let directory = class.path().join(adapter).join("ports").join(port);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("state"), state).unwrap();
        }
        assert_eq!(adapters(class.path()), ["mlx5_0:2", "mlx5_1:1"]);
        assert_eq!(adapters(&class.path().join("none")), [""; 0]);
    }
}
