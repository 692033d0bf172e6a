// A GraphQL server for the tests: graphql-yoga over HTTPS (h1 and h2) and
// graphql-transport-ws over WebSocket. It writes one JSON line for each
// request, WebSocket message and executed operation to standard output.
//
//   node server.mjs ADDRESS PORT CERT KEY
import { readFileSync } from 'node:fs'
import { createServer } from 'node:https'
import { createSecureServer } from 'node:http2'
import { createSchema, createYoga } from 'graphql-yoga'
import { useServer } from 'graphql-ws/use/ws'
import { WebSocketServer } from 'ws'

const [address, port, cert, key] = process.argv.slice(2)
const say = what => process.stdout.write(JSON.stringify(what) + '\n')

const schema = createSchema({
  typeDefs: /* GraphQL */ `
    type Project { id: ID! name: String! }
    type Query { me: String! projects(first: Int): [Project!]! project(id: ID!): Project }
    type Mutation {
      projectCreate(name: String!): Project!
      projectDelete(id: ID!): Boolean!
      volumeDelete(volumeId: String!): Boolean!
    }
    type Subscription { ticks(to: Int!): Int! }
  `,
  resolvers: {
    Query: {
      me: () => 'tester',
      projects: () => [{ id: 1, name: 'one' }, { id: 2, name: 'two' }],
      project: (_, { id }) => ({ id, name: 'project ' + id }),
    },
    Mutation: {
      projectCreate: (_, { name }) => (say({ executed: 'projectCreate' }), { id: 3, name }),
      projectDelete: () => (say({ executed: 'projectDelete' }), true),
      volumeDelete: () => (say({ executed: 'volumeDelete' }), true),
    },
    Subscription: {
      ticks: {
        subscribe: async function* (_, { to }) {
          for (let i = 1; i <= to; i++) yield { ticks: i }
        },
      },
    },
  },
})

const yoga = createYoga({ schema, batching: true, graphqlEndpoint: '/graphql', landingPage: false, graphiql: false, logging: false })

function listener(req, res) {
  const chunks = []
  req.on('data', c => chunks.push(c))
  req.on('end', async () => {
    const body = Buffer.concat(chunks)
    say({ http: req.httpVersion, method: req.method, url: req.url, authorization: req.headers.authorization ?? '', body: body.toString() })
    const headers = Object.fromEntries(Object.entries(req.headers).filter(([name]) => !name.startsWith(':')))
    const url = 'https://' + (req.headers[':authority'] ?? req.headers.host) + req.url
    const answer = await yoga.fetch(new Request(url, { method: req.method, headers, body: body.length ? body : undefined }))
    const text = Buffer.from(await answer.arrayBuffer())
    const out = Object.fromEntries(answer.headers)
    delete out.connection
    res.writeHead(answer.status, { ...out, 'content-length': text.length })
    res.end(text)
  })
}

const tls = { cert: readFileSync(cert), key: readFileSync(key) }

// One port for h1 and h2; WebSockets, which need the http module, on the next.
createSecureServer({ ...tls, allowHTTP1: true }, listener).listen(+port, address, () => {
  const sockets = createServer(tls, listener)
  const wss = new WebSocketServer({ server: sockets, path: '/graphql' })
  wss.on('connection', c => c.on('message', data => say({ message: data.toString() })))
  useServer({ schema }, wss)
  sockets.listen(+port + 1, address, () => say({ ready: true }))
})
