# Everything here calls the same scripts that the README names.
.PHONY: build check test e2e fuzz bench demo

build: ; ./scripts/build
demo:  ; ./scripts/demo
test:  ; ./scripts/test
e2e:   ; ./scripts/test ./e2e

# What needs no privileges: formatting, vet, lint, the pure packages.
check:
	test -z "$$(gofmt -l .)"
	go vet ./...
	golangci-lint run
	go test ./rules ./graphql ./audit .

fuzz:  ; ./scripts/fuzz
bench: ; ./scripts/bench $(BENCH)   # make bench BENCH="-b TCP/fresh ./bench"
