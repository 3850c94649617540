//! What a service and its supervisor say to each other when the service does not come to serve.

use super::*;
use crate::service::link::Link;
use crate::service::message::Keep;

#[test]
fn a_restart_that_fails_costs_the_supervisor_nothing() {
    for is_fresh in [true, false] {
        let directory = Directory::open(&format!("test-restart-{}-{is_fresh}", std::process::id())).unwrap();
        // In the way of the socket, so that listening fails after all else has been done.
        std::fs::create_dir(directory.socket()).unwrap();
        let (ours, supervisor) = Socket::pair().unwrap();
        let former = Memory::create(64 << 20, false).unwrap();
        let inherited = Inherited { ctl: former.ctl().try_clone().unwrap(), segments: BTreeMap::new() };
        let failed = Server::new(Setup {
            host: directory.try_host().unwrap().unwrap(),
            budget: 64 << 20,
            prefault: 0,
            displace: false,
            inherited: (!is_fresh).then_some(inherited),
            members: None,
            keeper: Some(Link::over(ours).unwrap()),
            directory: directory.clone(),
        });
        assert!(failed.is_err());
        drop(failed);
        let mut packet = Vec::new();
        let said = match supervisor.recv(&mut packet).unwrap() {
            Received::Packet { .. } => Some(Keep::decode(&packet).unwrap()),
            _ => None,
        };
        // It forgets all segments when it gets another table.
        assert_eq!(matches!(said, Some(Keep::Ctl { .. })), is_fresh, "{said:?}");
        std::fs::remove_dir(directory.socket()).unwrap();
        assert!(directory.remove().unwrap());
    }
}
