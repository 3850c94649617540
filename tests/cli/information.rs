//! `info`, `completions`, help, usage.

use proxystore::{connectors, environment};

use crate::{Room, failed, succeeded, text};

#[test]
fn info_lists_every_variable_and_connector() {
    let room = Room::new();
    let output = room.run(&["info"]);
    succeeded(&output);
    let out = text(&output.stdout);
    for variable in environment::VARIABLES {
        assert!(out.contains(variable.name) && out.contains(variable.doc), "{}", variable.name);
    }
    for row in connectors::TABLE {
        assert!(out.contains(row.summary) && out.contains(row.scheme), "{}", row.scheme);
    }
    let heads = [
        "Version",
        "Features",
        "Default store",
        "Shared memory",
        "Connectors",
        "Native libraries",
        "Network",
        "Limits",
        "Launcher",
        "Job",
        "Environment",
    ];
    for head in heads {
        assert!(out.contains(&format!("# {head}\n")), "{head}");
    }
    assert!(out.contains(&room.url()));
    // Looking changes nothing.
    assert_eq!(crate::names(room.path()), [""; 0]);
}

#[test]
fn info_as_json() {
    let room = Room::new();
    let mut command = room.command(&["info", "--json"]);
    command.env("PROXYSTORE_TIMEOUT", "3s").env("PROXYSTORE_TIEMOUT", "3s").env("SLURM_JOB_ID", "7");
    let output = command.output().unwrap();
    succeeded(&output);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let variables = value["variables"].as_array().unwrap();
    assert_eq!(variables.len(), environment::VARIABLES.len());
    let timeout = variables.iter().find(|row| row["name"] == "PROXYSTORE_TIMEOUT").unwrap();
    assert_eq!((timeout["value"].as_str(), timeout["default"].as_str()), (Some("3s"), Some("10s")));
    assert_eq!(value["unknown_variables"], serde_json::json!(["PROXYSTORE_TIEMOUT"]));
    assert_eq!(value["default_store"], room.url());
    let libraries = value["native_libraries"].as_array().unwrap();
    let names: Vec<&str> = libraries.iter().map(|library| library["name"].as_str().unwrap()).collect();
    let built = [("ucx", cfg!(feature = "ucx")), ("margo", cfg!(feature = "margo"))];
    assert_eq!(names, built.iter().filter(|(_, is_built)| *is_built).map(|(name, _)| *name).collect::<Vec<_>>());
    assert!(value["network"].is_array() && value["network_advice"].is_array());
    assert!(value["limits"]["nofile_soft"].is_u64() && value["limits"]["cores"].is_u64());
    let slurm = value["launcher"].as_array().unwrap().iter().find(|row| row["name"] == "Slurm").unwrap();
    assert!(slurm["variables"].as_array().unwrap().contains(&"SLURM_JOB_ID".into()));
}

#[test]
#[cfg(feature = "ucx")]
fn info_says_why_there_is_no_ucx() {
    let room = Room::new();
    let mut command = room.command(&["info"]);
    let output = command.env("PROXYSTORE_UCX_LIB", "/nonexistent").env("UCX_TLS", "all").output().unwrap();
    succeeded(&output);
    let out = text(&output.stdout);
    for part in [
        "ucx                    no usable UCX: /nonexistent (PROXYSTORE_UCX_LIB): is neither a file nor a directory",
        "install UCX 1.12",
        "UCX_TLS=all",
    ] {
        assert!(out.contains(part), "{part}\n{out}");
    }
}

#[test]
fn info_tells_the_job_and_never_the_secret() {
    let room = Room::new();
    let secret = "5ec4e7".repeat(11)[..64].to_owned();
    for arguments in [&["info"][..], &["info", "--json"]] {
        let mut command = room.command(arguments);
        command.env("SLURM_JOB_ID", "7").env("SLURM_JOB_NODELIST", "n[1-3]").env("SLURMD_NODENAME", "n2");
        command.env("OMPI_COMM_WORLD_RANK", "4").env("OMPI_COMM_WORLD_SIZE", "6").env("SLURM_PROCID", "1");
        command.env("PROXYSTORE_SECRET", &secret).env("PROXYSTORE_NET_DEVICES", "lo").env("PROXYSTORE_PORT", "4711");
        let output = command.output().unwrap();
        succeeded(&output);
        let out = text(&output.stdout);
        assert!(!out.contains(&secret[..8]), "{out}");
        if arguments.len() == 1 {
            for line in [
                "job                    slurm-7 (by Slurm)",
                "node                   1 of 3: n2",
                "rank                   4 of 6, on its node unknown (by Open MPI)",
                "secret                 PROXYSTORE_SECRET",
                "because                named by PROXYSTORE_NET_DEVICES",
                "port                   4711",
                "PROXYSTORE_SECRET=(set, not shown)",
            ] {
                assert!(out.contains(&format!("{line}\n")), "{line}\n{out}");
            }
            assert!(out.contains("listens on             lo 127.0.0.1"), "{out}");
        } else {
            let job = &serde_json::from_str::<serde_json::Value>(&out).unwrap()["job"];
            let expected = [
                ("id", "slurm-7".into()),
                ("node_id", 1.into()),
                ("rank", 4.into()),
                ("size", 6.into()),
                ("secret", "PROXYSTORE_SECRET".into()),
                ("ports", serde_json::json!([4711])),
                ("errors", serde_json::json!([])),
            ];
            for (name, value) in expected {
                assert_eq!(job[name], value, "{name}");
            }
        }
    }
}

#[test]
fn info_makes_no_secret_and_says_what_is_wrong() {
    let room = Room::new();
    let home = room.path().join("home");
    let mut command = room.command(&["info"]);
    command.env("HOME", &home).env_remove("XDG_CONFIG_HOME").env("PROXYSTORE_NET_DEVICES", "nosuch0");
    let output = command.output().unwrap();
    succeeded(&output);
    let out = text(&output.stdout);
    let path = home.join(".config/proxystore/secret");
    assert!(out.contains(&format!("derived from {}, made when first needed", path.display())), "{out}");
    assert!(
        out.contains("job                    default (by session)") && out.contains("no interface \"nosuch0\""),
        "{out}"
    );
    assert!(!home.exists());

    let output =
        room.command(&["info"]).env("PROXYSTORE_JOB", "../7").env("PROXYSTORE_STORE", "shm://").output().unwrap();
    succeeded(&output);
    assert!(text(&output.stdout).contains("PROXYSTORE_JOB=\"../7\" is no name of a job"));
    let mut command = room.command(&["ls"]);
    let output = command.env("PROXYSTORE_JOB", "../7").env("PROXYSTORE_STORE", "shm://").output().unwrap();
    failed(&output, 1, &["PROXYSTORE_JOB"]);
}

#[test]
fn the_job_names_the_namespace() {
    let room = Room::new();
    for (name, value, namespace) in [
        ("PROXYSTORE_JOB", "beam", "shm://beam"),
        ("SLURM_JOB_ID", "7", "shm://slurm-7"),
        ("PMIX_NAMESPACE", "prterun-n1-4711@1", "shm://mpi-prterun-n1-4711"),
        ("PMI_RANK", "0", "shm://default"),
    ] {
        let mut command = room.command(&["info", "--json"]);
        let output = command.env("PROXYSTORE_STORE", "shm://").env(name, value).output().unwrap();
        succeeded(&output);
        let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(info["default_store"], namespace);
    }
}

#[test]
fn unknown_variables_warn() {
    let room = Room::new();
    let output = room.command(&["info"]).env("PROXYSTORE_TIEMOUT", "3s").output().unwrap();
    assert!(text(&output.stdout).contains("warning: PROXYSTORE_TIEMOUT"));
    let output = room.command(&["put", "/proc/version"]).env("PROXYSTORE_TIEMOUT", "3s").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("PROXYSTORE_TIEMOUT"));
}

#[test]
fn completions_for_every_shell() {
    let room = Room::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = room.run(&["completions", shell]);
        succeeded(&output);
        let script = text(&output.stdout);
        assert!(script.contains("time-budget") && script.contains("evict"), "{shell}");
        assert!(!script.contains("bench-peer") && !script.contains("remove-at-eof"), "{shell}");
    }
}

#[test]
fn help_and_version() {
    let room = Room::new();
    for command in ["put", "get", "exists", "evict", "ls", "stat", "top", "gc", "info", "bench", "completions"] {
        let output = room.run(&[command, "--help"]);
        succeeded(&output);
        assert!(text(&output.stdout).contains(&format!("Usage: proxystore {command}")), "{command}");
    }
    let help = text(&room.run(&["--help"]).stdout);
    for part in ["Exit status", "Examples", "no such object"] {
        assert!(help.contains(part), "{part}");
    }
    assert!(!help.contains("bench-peer") && !help.contains("remove-at-eof"));
    assert_eq!(text(&room.run(&["--version"]).stdout), format!("proxystore {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_status_2() {
    let room = Room::new();
    for arguments in [
        &[][..],
        &["nosuch"],
        &["put"],
        &["get"],
        &["get", "token", "--timeout", "soon"],
        &["get", "token", "--timeout", "0s"],
        &["bench", "--sizes", "big"],
        &["bench", "--op", "nosuch"],
        &["bench", "--iterations", "0"],
        &["bench", "--iterations", "3", "--time-budget", "1s"],
        &["completions", "cmd.exe"],
    ] {
        let output = room.run(arguments);
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(2), true), "{arguments:?}");
    }
}
