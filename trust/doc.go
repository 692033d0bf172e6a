// Package trust makes the programs in a container trust Weir's interception
// authority, and undoes it.
//
// It changes files of the container's own root file system only: the system's
// bundle of certificates in the places where Debian-, Alpine- and RHEL-like
// images have it, the directory from which the image's own tool would rebuild
// that bundle, and /etc/weir, which holds the authority by itself and a trust
// store for Java. It starts nothing inside the container and never puts the
// authority's key there.
//
//	result, err := trust.Install(root, authority)   // root: *container.Root
//	for _, v := range result.Environment { fmt.Println(v.Name + "=" + v.Value) }
//	...
//	err = trust.Uninstall(root, authority)
//
// Programs that bring their own list of authorities do not read the system's;
// for them Install returns environment variables, which have to be set where
// the program is started.
//
// Invariants:
//   - Install again changes nothing; Uninstall restores every file to the
//     content, owner and mode it had, and removes what Install made.
//   - A bundle is replaced in one step; nobody reads half of one.
//   - What cannot be changed (a read-only root, a volume) is an error that
//     names the file, and nothing is left half done.
package trust
