// A GraphQL client for the tests. Prints what it got as one JSON line.
//
//   node client.mjs apollo|urql|fetch|ws URL DOCUMENT [VARIABLES]
const [kind, url, document, variables = '{}'] = process.argv.slice(2)
const headers = { authorization: 'Bearer ' + process.env.TOKEN }
const say = what => process.stdout.write(JSON.stringify(what) + '\n')
const cause = e => ({ message: e.message, cause: e.cause?.code ?? e.cause?.message })

const kinds = {
  async apollo() {
    const { ApolloClient, ApolloLink, HttpLink, InMemoryCache, gql } = await import('@apollo/client')
    const client = new ApolloClient({ link: new HttpLink({ uri: url, headers }), cache: new InMemoryCache() })
    const parsed = gql(document)
    const options = { variables: JSON.parse(variables), errorPolicy: 'all' }
    const mutation = parsed.definitions[0].operation === 'mutation'
    const { data, error } = await (mutation ? client.mutate({ mutation: parsed, ...options }) : client.query({ query: parsed, ...options }))
    say({ data, errors: error?.errors, failed: error && !error.errors ? { message: error.message, status: error.statusCode, body: error.bodyText } : undefined })
  },
  async urql() {
    const { Client, fetchExchange } = await import('@urql/core')
    const client = new Client({ url, exchanges: [fetchExchange], fetchOptions: { headers }, preferGetMethod: false })
    const mutation = document.trim().startsWith('mutation')
    const { data, error } = await (mutation ? client.mutation(document, JSON.parse(variables)) : client.query(document, JSON.parse(variables))).toPromise()
    say({ data, errors: error?.graphQLErrors, failed: error?.networkError && cause(error.networkError) })
  },
  async fetch() {
    const r = await fetch(url, {
      method: 'POST',
      headers: { ...headers, 'content-type': 'application/json' },
      body: JSON.stringify({ query: document, variables: JSON.parse(variables) }),
    })
    say({ status: r.status, event: r.headers.get('x-weir-event'), ...(await r.json()) })
  },
  async ws() {
    const { createClient } = await import('graphql-ws')
    const { default: WebSocket } = await import('ws')
    const client = createClient({ url, webSocketImpl: WebSocket, retryAttempts: 0, connectionParams: headers })
    const results = []
    try {
      for await (const r of client.iterate({ query: document, variables: JSON.parse(variables) })) results.push(r)
      say({ results })
    } catch (e) {
      say({ results, closed: e.code, reason: e.reason, failed: e.code ? undefined : String(e.message ?? e) })
    }
    await client.dispose()
  },
}

await kinds[kind]().catch(e => say({ failed: cause(e) }))
