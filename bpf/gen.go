// Package bpf holds the BPF programs and the Go bindings generated from them.
//
// maps.c is the map ABI: its object carries every map and shared type, and nothing runs from
// it. Each program has an object of its own, loaded with the maps of the first one in the
// place of its own (pkg/datapath does that). The generated files are committed, so a build
// needs Go only; `make generate` makes them again, bit for bit, with clang 19.
package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Wpadded -Werror -isystem include" -type tuple -type ct_dir -type ct_state -type deliver -type ct_half_flag -type ct_pair_flag -type ct_pair -type ct_bucket -type ct_rooms -type fragment_key -type fragment -type fragment_fate -type held_state -type held_fragment -type held_cursor -type frontend_key -type frontend -type frontend_kind -type frontend_flag -type scheduler -type timeout -type service -type group -type backend_flag -type backend -type backend_stat -type latency -type affinity_key -type affinity -type allow_key -type endpoint_key -type endpoint -type setting_flag -type node -type node_flag -type vtep_key -type subnet_key -type uplink -type vlan -type vlan_key -type vlan_source -type neighbour_key -type neighbour -type neighbour_flag -type node_settings -type reject_bucket -type drop_reason -type sweep -type dsr_vip Maps maps.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Wpadded -Werror -isystem include" -no-global-types FromContainer from_container.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Wpadded -Werror -isystem include" -no-global-types ToContainer to_container.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Wpadded -Werror -isystem include" -no-global-types FromHost from_host.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Wpadded -Werror -isystem include" -no-global-types FromOverlay from_overlay.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Wpadded -Werror -isystem include" -no-global-types FromUplink from_uplink.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Wpadded -Werror -isystem include" -no-global-types ToUplink to_uplink.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Wpadded -Werror -isystem include" -no-global-types FromTrunk from_trunk.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Wpadded -Werror -isystem include" -no-global-types CtSweep ct_sweep.c
