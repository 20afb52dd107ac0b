use super::*;

struct Fixed;

const DOCKER: u32 = 998;

fn account(name: &str, uid: u32, gid: u32) -> Account {
    Account { name: name.into(), uid, gid, home: format!("/home/{name}").into() }
}

impl Accounts for Fixed {
    fn by_uid(&self, uid: u32) -> Result<Option<Account>, IdentityError> {
        Ok([account("root", 0, 0), account("ann", 1000, 1001), account("whale", 1002, DOCKER)]
            .into_iter()
            .find(|account| account.uid == uid))
    }

    fn by_name(&self, name: &str) -> Result<Option<Account>, IdentityError> {
        Ok((name == "ann").then(|| account("ann", 1000, 1001)))
    }

    fn groups(&self, name: &str, gid: u32) -> Result<Vec<u32>, IdentityError> {
        Ok(if name == "ann" { vec![gid, 27, DOCKER] } else { vec![gid] })
    }

    fn group_name(&self, gid: u32) -> Result<Option<String>, IdentityError> {
        Ok((gid == DOCKER).then(|| "docker".into()))
    }
}

fn caller(uid: u32, gid: u32, sudo: Option<(&str, &str)>) -> Caller {
    Caller {
        uid,
        gid,
        groups: vec![gid, 44, DOCKER],
        sudo_uid: sudo.map(|(uid, _)| uid.into()),
        sudo_gid: sudo.map(|(_, gid)| gid.into()),
    }
}

fn find(caller: &Caller, user: Option<&str>) -> Result<Identity, IdentityError> {
    identity(caller, user, &Fixed)
}

#[test]
fn under_sudo_it_is_the_user_who_called_sudo() {
    let found = find(&caller(0, 0, Some(("1000", "1001"))), None).unwrap();
    let expected = Identity {
        uid: 1000,
        gid: 1001,
        groups: vec![27, 1001],
        home: "/home/ann".into(),
        name: "ann".into(),
        switched: true,
    };
    assert_eq!(found, expected);
}

#[test]
fn root_under_roots_sudo_stays_root() {
    let found = find(&caller(0, 0, Some(("0", "0"))), None).unwrap();
    assert_eq!((found.uid, found.gid, found.switched), (0, 0, false));
}

#[test]
fn damaged_sudo_ids_are_refused_from_root_and_ignored_from_others() {
    for bad in ["", "ann", "-1", "+5", "4294967295", "1000 "] {
        assert!(matches!(find(&caller(0, 0, Some((bad, "0"))), None), Err(IdentityError::SudoId { .. })), "{bad:?}");
    }
    let found = find(&caller(1000, 1001, Some(("0", "0"))), None).unwrap();
    assert_eq!((found.uid, found.gid), (1000, 1001));
}

#[test]
fn without_sudo_it_is_the_caller_less_the_doors() {
    let found = find(&caller(1000, 1001, None), None).unwrap();
    assert_eq!((found.uid, found.gid, found.groups, found.switched), (1000, 1001, vec![44, 1001], false));
}

#[test]
fn a_caller_without_account_is_taken_by_number() {
    let found = find(&caller(4242, 4243, None), None).unwrap();
    assert_eq!((found.uid, found.gid, found.name), (4242, 4243, "4242".into()));
    assert_eq!(found.home, PathBuf::from("/"));
}

#[test]
fn user_beats_sudo() {
    let found = find(&caller(0, 0, Some(("1002", "1"))), Some("ann")).unwrap();
    assert_eq!((found.uid, found.gid, found.groups), (1000, 1001, vec![27, 1001]));
}

#[test]
fn a_named_group_is_meant_alone() {
    for user in ["1000:27", "ann:27"] {
        let found = find(&caller(0, 0, None), Some(user)).unwrap();
        assert_eq!((found.uid, found.gid, found.groups), (1000, 27, vec![27]), "{user}");
    }
}

#[test]
fn numbers_without_account_need_a_group() {
    let root = caller(0, 0, None);
    assert!(matches!(find(&root, Some("4242")), Err(IdentityError::NoGroup(4242))));
    let found = find(&root, Some("4242:7")).unwrap();
    assert_eq!((found.uid, found.gid, found.groups), (4242, 7, vec![7]));
}

#[test]
fn nonsense_is_refused() {
    let root = caller(0, 0, None);
    for bad in ["", ":", ":5", "5:", "ann:x", "ann:-1", "4294967295", "4294967296", "0:4294967295"] {
        assert!(matches!(find(&root, Some(bad)), Err(IdentityError::Syntax(_))), "{bad:?}");
    }
    assert!(matches!(find(&root, Some("bob")), Err(IdentityError::NoUser(_))));
}

#[test]
fn only_root_changes_users() {
    let ann = caller(1000, 1001, None);
    for other in ["0:0", "1000:27", "1002:1"] {
        assert!(matches!(find(&ann, Some(other)), Err(IdentityError::NotRoot { .. })), "{other}");
    }
    assert_eq!(find(&ann, Some("ann")).unwrap().uid, 1000);
}

#[test]
fn a_door_cannot_be_the_primary_group() {
    let root = caller(0, 0, None);
    assert!(matches!(find(&root, Some("1002")), Err(IdentityError::Door { gid: DOCKER, .. })));
    assert!(matches!(find(&root, Some("1000:998")), Err(IdentityError::Door { .. })));
}
